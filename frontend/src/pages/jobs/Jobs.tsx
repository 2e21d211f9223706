import { Button, Group, Modal, SegmentedControl, Stack } from "@mantine/core";
import { useQuery, type UseQueryResult } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { isActive, jobsQuery } from "@/api/jobs";
import { projectsQuery } from "@/api/projects";
import type { Job } from "@/api/types";
import { useProjectId, useRights } from "@/app/project";
import frame from "@/app/Shell.module.css";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { POLLING, useJobUpdates } from "@/live/hooks";
import { JobNotes, JobTable } from "./JobTable";
import { NewPipeline } from "./NewPipeline";

type Show = "active" | "finished" | undefined;

function Filter({ show, onChange }: { show: Show; onChange: (show: Show) => void }) {
  return (
    <SegmentedControl
      size="xs"
      aria-label="Which jobs"
      value={show ?? "all"}
      onChange={(value) => onChange(value === "all" ? undefined : (value))}
      data={[{ value: "all", label: "All" }, { value: "active", label: "Unfinished" }, { value: "finished", label: "Finished" }]}
    />
  );
}

function List({ query, show, names }: { query: UseQueryResult<Job[]>; show: Show; names?: Record<string, string> }) {
  return (
    <Loaded query={query} what="the jobs">
      {(jobs) => {
        const shown = show === undefined ? jobs : jobs.filter((job) => isActive(job) === (show === "active"));
        return (
          <Stack gap="sm">
            <JobNotes jobs={jobs} />
            {shown.length === 0 ? (
              <Empty title={show === "active" ? "Nothing is running" : "No jobs"}>Jobs appear here when something is recorded, trained, evaluated or analysed.</Empty>
            ) : (
              <JobTable jobs={shown} projectNames={names} />
            )}
          </Stack>
        );
      }}
    </Loaded>
  );
}

/** The jobs of one project. */
export function ProjectJobs() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const { show, add } = useSearch({ from: "/signed-in/projects/$project/jobs" });
  const navigate = useNavigate();
  const query = useQuery(jobsQuery({ project }));
  const close = () => void navigate({ to: ".", search: { show } });
  const actions = (
    <Group gap="xs">
      <Filter show={show} onChange={(next) => void navigate({ to: ".", search: { show: next } })} />
      {edit && <Button onClick={() => void navigate({ to: ".", search: { show, add: true } })} data-testid="new-pipeline">Record, train, evaluate, analyse</Button>}
    </Group>
  );
  return (
    <Page title="Jobs" actions={actions}>
      <List query={query} show={show} />
      <Modal opened={add === true && edit} onClose={close} title="Record, train, evaluate and analyse in one go" size="xl">
        <NewPipeline project={project} onStarted={close} />
      </Modal>
    </Page>
  );
}

/** The jobs of all my projects. */
export function AllJobs() {
  const { show } = useSearch({ from: "/signed-in/jobs" });
  const navigate = useNavigate();
  const projects = useQuery(projectsQuery);
  const live = useJobUpdates(projects.data?.map((project) => project.id) ?? []);
  const query = useQuery({ ...jobsQuery(), refetchInterval: live ? false : POLLING });
  const names = Object.fromEntries((projects.data ?? []).map((project) => [project.id, project.name]));
  const filter = <Filter show={show} onChange={(next) => void navigate({ to: ".", search: { show: next } })} />;
  return (
    <div className={frame.content}>
      <Page title="Jobs" lead="Of all your projects, newest first." actions={filter}>
        <List query={query} show={show} names={names} />
      </Page>
    </div>
  );
}
