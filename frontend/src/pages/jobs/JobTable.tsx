import { Group, Stack, Text } from "@mantine/core";
import { useInterval } from "@mantine/hooks";
import { useEffect, useState } from "react";
import type { Job } from "@/api/types";
import { JobProgress } from "@/components/JobProgress";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";
import { ago, duration } from "@/science/format";
import { JobActions } from "./JobActions";
import styles from "./JobTable.module.css";

/** How long the job ran, or has been running. */
export function lasted(job: Job): string {
  if (!job.started_at) return "–";
  const end = job.finished_at ? Date.parse(job.finished_at) : Date.now();
  return duration((end - Date.parse(job.started_at)) / 1000);
}

/** Jobs as rows that also fit a narrow screen. */
export function JobTable({ jobs, projectNames }: { jobs: readonly Job[]; projectNames?: Record<string, string> }) {
  return (
    <ul className={styles.list}>
      {jobs.map((job) => (
        <li key={job.id} className={styles.row} data-testid="job-row" data-kind={job.kind} data-state={job.state} data-job={job.id}>
          <div className={styles.title}>
            <TextLink to="/jobs/$job" params={{ job: job.id }} fw={600}>{job.title}</TextLink>
            <Text size="xs" c="dimmed">
              {[projectNames?.[job.project], job.created_by, ago(job.created_at)].filter(Boolean).join(" · ")}
            </Text>
          </div>
          <div className={styles.state}>
            <StateBadge state={job.stalled ? "stalled" : job.state} />
          </div>
          <div className={styles.progress}>
            <JobProgress job={job} />
            {job.error && (
              <Text size="xs">{job.error.message} <strong>{job.error.hint}</strong></Text>
            )}
            {job.finished_at && !job.error && <Text size="xs" c="dimmed">took {lasted(job)}</Text>}
          </div>
          <Group gap={4} className={styles.actions}><JobActions job={job} /></Group>
        </li>
      ))}
    </ul>
  );
}

/** A warning when jobs wait and no worker takes them. */
export function JobNotes({ jobs }: { jobs: readonly Job[] }) {
  const [now, setNow] = useState(() => Date.now());
  const { start, stop } = useInterval(() => setNow(Date.now()), 10_000);
  useEffect(() => {
    start();
    return stop;
  }, [start, stop]);
  const waiting = jobs.filter((job) => job.state === "queued");
  const oldest = Math.min(...waiting.map((job) => Date.parse(job.created_at)));
  const running = jobs.some((job) => job.state === "running" || job.state === "claimed" || job.state === "cancelling");
  if (waiting.length === 0 || running || now - oldest < 30_000) return null;
  return (
    <Stack gap={0} className="panel" role="status">
      <Text fw={600} size="sm">No worker has taken the waiting jobs for a while</Text>
      <Text size="sm" c="dimmed">Either a worker is busy with another project, or no compute worker runs. Administrators see the workers in the administration.</Text>
    </Stack>
  );
}
