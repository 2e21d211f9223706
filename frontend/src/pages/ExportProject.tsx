import { Anchor, Button, Checkbox, Group, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { exportProject } from "@/api/bundles";
import { isActive, jobsQuery } from "@/api/jobs";
import { fileUrl } from "@/api/saes";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { JobOf } from "@/components/JobOf";
import { ago } from "@/science/format";

/** Take the whole project out as one file, which any instance can import; earlier ones stay to be downloaded. */
export function ExportProject({ project }: { project: string }) {
  const [recordings, setRecordings] = useState(true);
  const jobs = useQuery(jobsQuery({ project }));
  const invalidate = useInvalidate();
  const start = useMutation({
    mutationFn: () => exportProject(project, { recordings }),
    onSettled: () => invalidate("jobs"),
  });
  const made = (jobs.data ?? []).filter((job) => job.kind === "export_project");
  return (
    <section className="panel" aria-labelledby="export-project" data-testid="export-project">
      <h2 id="export-project">Export</h2>
      <Text size="sm" c="dimmed" mb="xs">
        One archive with models by reference, texts, recordings, SAEs, features, patches and what their exports were
        certified with. Members, jobs and exports that their gate holds back stay here.
      </Text>
      <Group gap="md">
        <Checkbox label="With recordings (the largest part)" checked={recordings} onChange={(event) => setRecordings(event.currentTarget.checked)} />
        <Button variant="default" onClick={() => start.mutate()} loading={start.isPending} data-testid="export-project-start">Export the project</Button>
      </Group>
      <ErrorNote error={start.error} doing="Starting the export" plain />
      {made.slice(0, 5).map((job) => (
        <Group key={job.id} gap="xs" justify="space-between" mt="xs">
          <Text size="sm">{job.title} <Text component="span" size="xs" c="dimmed">{ago(job.created_at)}</Text></Text>
          {job.artifact && <Anchor href={fileUrl(job.artifact, "project.zip")} download size="sm" data-testid="download-project">Download (.zip)</Anchor>}
          {(isActive(job) || job.state !== "succeeded") && <JobOf job={job} />}
        </Group>
      ))}
    </section>
  );
}
