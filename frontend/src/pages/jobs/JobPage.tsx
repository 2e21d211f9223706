import { Alert, Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import { isActive, jobQuery } from "@/api/jobs";
import { projectQuery } from "@/api/projects";
import type { Job } from "@/api/types";
import frame from "@/app/Shell.module.css";
import { Facts } from "@/components/Facts";
import { JobProgress } from "@/components/JobProgress";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";
import { fieldLabel } from "@/forms/fields";
import { POLLING, useJobUpdates } from "@/live/hooks";
import { moment } from "@/science/format";
import { Curves } from "./Curves";
import { JobActions } from "./JobActions";
import { PipelinePanel } from "./PipelinePanel";
import { JobLog } from "./JobLog";
import { lasted } from "./JobTable";
import { useJobHistory } from "./useJobHistory";

export function JobPage() {
  const { job: id } = useParams({ from: "/signed-in/jobs/$job" });
  const query = useQuery(jobQuery(id));
  const job = query.data?.job;
  const live = useJobUpdates(job ? [job.project] : []);
  useQuery({ ...jobQuery(id), refetchInterval: !live && job && isActive(job) ? POLLING : false });
  return (
    <div className={frame.content}>
      <Loaded query={query} what="the job">{(detail) => <JobView job={detail.job} params={detail.params} />}</Loaded>
    </div>
  );
}

function JobView({ job, params }: { job: Job; params: Record<string, unknown> }) {
  const events = useJobHistory(job.id, isActive(job));
  const { data: project } = useQuery(projectQuery(job.project));
  const crumbs = [
    { label: project?.name ?? "Project", to: "/projects/$project", params: { project: job.project } },
    { label: "Jobs", to: "/projects/$project/jobs", params: { project: job.project } },
  ];
  return (
    <Page title={job.title} crumbs={crumbs} actions={<JobActions job={job} />}>
      <div className="panel" data-testid="job" data-state={job.state}>
        <Stack gap="sm">
          <Facts
            facts={[
              { label: "State", value: <StateBadge state={job.stalled ? "stalled" : job.state} /> },
              { label: "Ran for", value: lasted(job) },
              { label: "Attempt", value: `${job.attempt} of at most ${job.max_attempts}` },
              { label: "Started by", value: job.created_by ?? "–" },
              { label: "Queued", value: moment(job.created_at) },
              { label: "Worker", value: job.worker ?? "–" },
              { label: "About", value: <Subject job={job} /> },
            ]}
          />
          <JobProgress job={job} />
        </Stack>
      </div>
      {job.error && (
        <Alert color="orange" variant="light" title={job.state === "failed" ? "This job failed" : "The last attempt failed"} role="alert">
          <Text size="sm">{job.error.message} <strong>{job.error.hint}</strong></Text>
          <Text size="xs" c="dimmed" ff="monospace">{job.error.code}</Text>
        </Alert>
      )}
      {job.pipeline && <PipelinePanel id={job.pipeline} current={job.id} />}
      <Curves events={events} unit={job.unit || "done"} />
      <div className="panel"><JobLog events={events} /></div>
      <Parameters params={params} />
    </Page>
  );
}

function Subject({ job }: { job: Job }) {
  const project = job.project;
  switch (job.subject_type) {
    case "sae":
      return <TextLink to="/projects/$project/saes/$sae" params={{ project, sae: job.subject_id }}>the SAE</TextLink>;
    case "corpus":
      return <TextLink to="/projects/$project/recordings" params={{ project }}>the corpora</TextLink>;
    case "recording":
      return <TextLink to="/projects/$project/recordings" params={{ project }}>the recordings</TextLink>;
    case "languagemodel":
    case "model":
      return <TextLink to="/projects/$project/models" params={{ project }}>the models</TextLink>;
    default:
      return <>{job.subject_type}</>;
  }
}

function shown(value: unknown): string {
  if (value == null) return "automatic";
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

function Parameters({ params }: { params: Record<string, unknown> }) {
  const entries = Object.entries(params);
  if (entries.length === 0) return null;
  return (
    <details className="panel">
      <summary>Parameters</summary>
      <Facts facts={entries.map(([name, value]) => ({ label: fieldLabel(name), value: shown(value), title: name }))} />
    </details>
  );
}
