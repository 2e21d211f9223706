import { Group } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { isActive, jobsQuery } from "@/api/jobs";
import type { Job } from "@/api/types";
import { JobProgress } from "./JobProgress";
import { TextLink } from "./TextLink";

/** The newest job about something, out of the project's list, which is kept up to date. */
export function useJobAbout(project: string, subject: string, kind?: string): Job | undefined {
  const { data } = useQuery(jobsQuery({ project }));
  return data?.find((job) => job.subject_id === subject && (!kind || job.kind === kind));
}

/** Progress of a job where its result will be; its error when it failed. */
export function JobOf({ job }: { job: Job | undefined }) {
  if (!job) return null;
  if (isActive(job)) {
    return (
      <div style={{ marginTop: "0.4rem" }}>
        <JobProgress job={job} />
        <TextLink to="/jobs/$job" params={{ job: job.id }} size="xs">watch it</TextLink>
      </div>
    );
  }
  if (job.state === "succeeded") return null;
  return (
    <Group gap={6} fz="xs">
      <span style={{ overflowWrap: "anywhere" }}>{job.error ? <>{job.error.message} <strong>{job.error.hint}</strong></> : `The job was ${job.state}.`}</span>
      <TextLink to="/jobs/$job" params={{ job: job.id }} size="xs">details, try again</TextLink>
    </Group>
  );
}
