import { Button, Group, Stack, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { cancelPipeline, pipelineQuery, retryPipeline } from "@/api/jobs";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";

/** The steps of the pipeline a job is part of. */
export function PipelinePanel({ id, current }: { id: string; current: string }) {
  const query = useQuery(pipelineQuery(id));
  const invalidate = useInvalidate();
  const refresh = () => invalidate("jobs");
  const cancel = useMutation({ mutationFn: () => cancelPipeline(id), onSettled: refresh });
  const retry = useMutation({ mutationFn: () => retryPipeline(id), onSettled: refresh });
  return (
    <div className="panel" data-testid="pipeline">
      <Loaded query={query} what="the pipeline">
        {(pipeline) => (
          <Stack gap="xs">
            <Group justify="space-between">
              <Text fw={600} size="sm">Part of “{pipeline.name}”</Text>
              <Group gap="xs">
                {pipeline.cancellable && <Button variant="default" onClick={() => cancel.mutate()} loading={cancel.isPending} data-testid="cancel-pipeline">Cancel all</Button>}
                {pipeline.retryable && <Button variant="default" onClick={() => retry.mutate()} loading={retry.isPending} data-testid="retry-pipeline">Continue where it broke</Button>}
              </Group>
            </Group>
            <ErrorNote error={cancel.error ?? retry.error} doing={cancel.error ? "Cancelling" : "Continuing"} />
            <Stack component="ol" gap={4} m={0} pl="lg">
              {pipeline.jobs.map((job) => (
                <li key={job.id} aria-current={job.id === current ? "step" : undefined}>
                  <Group gap="xs">
                    {job.id === current ? <Text size="sm" fw={600}>{job.title}</Text> : <TextLink to="/jobs/$job" params={{ job: job.id }} size="sm">{job.title}</TextLink>}
                    <StateBadge state={job.state} />
                  </Group>
                </li>
              ))}
            </Stack>
          </Stack>
        )}
      </Loaded>
    </div>
  );
}
