import { Group, Progress, Stack, Text } from "@mantine/core";
import { isActive } from "@/api/jobs";
import type { Job } from "@/api/types";
import { compact, duration, percent, rate } from "@/science/format";

/** How long such jobs took before. */
function lasting(job: Job): string {
  return job.lasts_seconds === null ? "" : `takes about ${duration(job.lasts_seconds)}`;
}

function left(job: Job): string[] {
  // Everything is counted and the job still works: the time left is unknown.
  return job.eta_seconds === null || (job.total !== null && job.done >= job.total) ? [] : [`${duration(job.eta_seconds)} left`];
}

/** What a job is doing, as one sentence. */
export function progressSentence(job: Job): string {
  if (job.state === "waiting") return ["waits for the step before it", lasting(job)].filter(Boolean).join(" · ");
  if (job.state === "queued") {
    const place = job.queue_position > 0 ? `waiting, number ${job.queue_position} in the queue` : "waiting for a worker";
    const start = job.starts_in_seconds === null ? "" : job.starts_in_seconds < 5 ? "starts any moment" : `starts in about ${duration(job.starts_in_seconds)}`;
    return [place, start, lasting(job)].filter(Boolean).join(" · ");
  }
  if (job.state === "claimed") return "starting";
  if (job.state === "cancelling") return "stopping";
  if (!isActive(job)) return "";
  const parts = [job.phase || "working"];
  // The bar says how many per cent.
  if (job.unit === "%") return [...parts, ...left(job)].join(" · ");
  if (job.total) parts.push(`${compact(job.done)} of ${compact(job.total)} ${job.unit}`.trim());
  else if (job.done) parts.push(`${compact(job.done)} ${job.unit}`.trim());
  if (job.rate) parts.push(rate(job.rate, job.unit || "steps"));
  return [...parts, ...left(job)].join(" · ");
}

/** A bar with phase, amount, rate and time left, all as text too. */
export function JobProgress({ job }: { job: Job }) {
  if (!isActive(job)) return null;
  const share = job.total ? Math.min(1, job.done / job.total) : null;
  const sentence = progressSentence(job);
  return (
    <Stack gap={3} miw={0} data-testid="job-progress" data-done={job.done} data-total={job.total ?? ""}>
      <Progress
        value={share === null ? (job.state === "running" ? 100 : 0) : share * 100}
        animated={share === null && job.state === "running"}
        size={6}
        radius="sm"
        aria-label={`${job.title}: ${sentence}`}
      />
      <Group justify="space-between" gap="xs">
        <Text size="xs" c="dimmed">{sentence}</Text>
        {share !== null && <Text size="xs" c="dimmed">{percent(share)}</Text>}
      </Group>
      {job.stalled && <Text size="xs" c="orange">Its worker has not been heard of for a while; another one will take over.</Text>}
    </Stack>
  );
}
