import { Button, Group, Stack, Text, Title } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { jobsQuery } from "@/api/jobs";
import { deleteRecording, exportRecording } from "@/api/registry";
import type { Recording, RecordingSummary } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { DeleteButton } from "@/components/DeleteButton";
import { ErrorNote } from "@/components/ErrorNote";
import { Exports } from "@/components/Exports";
import { Facts } from "@/components/Facts";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { RenameButton } from "@/components/RenameButton";
import { StateBadge } from "@/components/StateBadge";
import { ago, bytes, compact, duration, integer, number, percent, rate } from "@/science/format";

/** Its corpus, or those that were mixed with their shares; of an imported recording, what it says it was made on. */
function textOf(recording: Recording): string {
  const total = recording.mixture.reduce((sum, part) => sum + part.weight, 0);
  if (recording.mixture.length === 0) return recording.corpus_name ?? (recording.summary as RecordingSummary).corpus?.description ?? "text of its own";
  return recording.mixture.map((part) => `${percent(part.weight / total)} ${part.name}`).join(" + ");
}

function precisionOf(summary: RecordingSummary): string {
  const model = summary.model;
  if (!model) return "–";
  return model.quantisation ? `${model.quantisation} weights, ${model.dtype}` : model.dtype;
}

export function RecordingCard({ recording, edit }: { recording: Recording; edit: boolean }) {
  const invalidate = useInvalidate();
  const project = recording.project;
  const job = useJobAbout(project, recording.id);
  const jobs = useQuery(jobsQuery({ project }));
  const pack = useMutation({
    mutationFn: () => exportRecording(recording.id),
    onSettled: () => invalidate("jobs"),
  });
  const summary = recording.summary as RecordingSummary;
  const site = summary.sites?.[0];
  return (
    <section className="panel" aria-label={recording.name} data-testid="recording-card" data-state={recording.state}>
      <Stack gap="sm">
        <Group justify="space-between" align="flex-start">
          <div>
            <Title order={2}>{recording.name}</Title>
            <Text size="xs" c="dimmed">{recording.model_name} on {textOf(recording)} · {recording.sites.join(", ")} of {recording.layers.length === 1 ? "block" : "blocks"} {recording.layers.join(", ")} · {ago(recording.created_at)}</Text>
          </div>
          <StateBadge state={recording.state} />
        </Group>
        {recording.state === "ready" ? (
          <Facts
            facts={[
              { label: "Tokens", value: integer(recording.tokens) },
              { label: "Held out", value: `${compact(summary.held_out_tokens)} (${percent((summary.held_out_tokens ?? 0) / recording.tokens)})`, title: "kept away from training, for evaluation" },
              { label: "Documents", value: integer(summary.documents) },
              { label: "Recorded at", value: rate(summary.tokens_per_second, "tokens") },
              { label: "Took", value: duration(summary.seconds) },
              { label: "On disk", value: bytes(recording.bytes) },
              { label: "Precision", value: precisionOf(summary), title: "of the model while it was recorded" },
              { label: "Median norm", value: number(site?.median_norm), title: site?.site },
              { label: "Attention sinks", value: percent((site?.outliers ?? 0) / recording.tokens), title: `tokens with a norm above ${number(site?.outlier_norm)}` },
            ]}
          />
        ) : (
          <JobOf job={job} />
        )}
        <Exports jobs={(jobs.data ?? []).filter((one) => one.subject_id === recording.id)} kind="export_recording" />
        <ErrorNote error={pack.error} doing="Starting the export" plain />
        {edit && (
          <Group gap="xs" justify="flex-end">
            {recording.state === "ready" && (
              <Button variant="default" loading={pack.isPending} onClick={() => pack.mutate()} data-testid="export-recording">Export</Button>
            )}
            {recording.state === "ready" && (
              <LinkButton to="/projects/$project/saes" params={{ project }} search={{ add: true, recording: recording.id }} variant="default">Train an SAE</LinkButton>
            )}
            <RenameButton kind="recordings" row={recording} />
            <DeleteButton what={recording.name} remove={() => deleteRecording(recording.id)} onDeleted={() => void invalidate("recordings")} />
          </Group>
        )}
      </Stack>
    </section>
  );
}
