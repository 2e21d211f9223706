import { Anchor, Group, Text } from "@mantine/core";
import { isActive } from "@/api/jobs";
import { archiveUrl } from "@/api/saes";
import type { Job } from "@/api/types";
import { ago } from "@/science/format";
import { JobOf } from "./JobOf";

/** What was written out so far, newest first, each as one download. */
export function Exports({ jobs, kind }: { jobs: readonly Job[]; kind: string }) {
  const exports = jobs.filter((job) => job.kind === kind);
  if (exports.length === 0) return null;
  return (
    <div className="panel" data-testid="exports">
      <Text size="sm" fw={600} mb={4}>Exports</Text>
      {exports.slice(0, 8).map((job) => (
        <Group key={job.id} gap="xs" justify="space-between">
          <Text size="sm">{job.title} <Text component="span" size="xs" c="dimmed">{ago(job.created_at)}</Text></Text>
          {job.artifact && <Anchor href={archiveUrl(job.artifact)} download size="sm" data-testid="download-export">Download (.zip)</Anchor>}
          {(isActive(job) || job.state !== "succeeded") && <JobOf job={job} />}
        </Group>
      ))}
    </div>
  );
}
