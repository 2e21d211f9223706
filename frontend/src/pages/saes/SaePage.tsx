import { Alert, Button, Stack, Text, Title } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate, useParams } from "@tanstack/react-router";
import { isActive, jobQuery, jobsQuery } from "@/api/jobs";
import { analyseSae, deleteSae, evaluateSae, saeQuery } from "@/api/saes";
import type { Sae } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { useProjectId, useRights } from "@/app/project";
import { DeleteButton } from "@/components/DeleteButton";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { Exports } from "@/components/Exports";
import { Facts } from "@/components/Facts";
import { JobOf } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { RenameButton } from "@/components/RenameButton";
import { StateBadge } from "@/components/StateBadge";
import { ago, compact, integer, percent } from "@/science/format";
import { saeDescription } from "@/science/sites";
import { filterOrigin, leavesOut, type TokenFilter } from "@/science/tokenFilter";
import { Curves } from "../jobs/Curves";
import { useJobHistory } from "../jobs/useJobHistory";
import { Assumed } from "./Assumed";
import { ExportButton } from "./ExportSae";
import { Files } from "./Files";
import { MeasureOn } from "./MeasureOn";
import { Report } from "./Report";
import { SmokeTest } from "./SmokeTest";

export function SaePage() {
  const { sae: id } = useParams({ from: "/signed-in/projects/$project/saes/$sae" });
  const query = useQuery(saeQuery(id));
  return <Loaded query={query} what="the SAE">{(sae) => <SaeView sae={sae} />}</Loaded>;
}

function SaeView({ sae }: { sae: Sae }) {
  const project = useProjectId();
  const { edit } = useRights(project);
  const invalidate = useInvalidate();
  const navigate = useNavigate();
  const jobs = useQuery(jobsQuery({ project }));
  const mine = (jobs.data ?? []).filter((job) => job.subject_id === sae.id);
  const running = (kind: string) => mine.some((job) => job.kind === kind && isActive(job));
  // Of each kind the newest: an old failure does not matter once a later attempt worked.
  const newest = ["train", "import_sae", "evaluate", "analyse"].flatMap((kind) => mine.find((job) => job.kind === kind) ?? []);
  const refresh = () => invalidate("jobs");
  const evaluate = useMutation({ mutationFn: () => evaluateSae(sae.id), onSettled: refresh });
  const analyse = useMutation({ mutationFn: () => analyseSae(sae.id), onSettled: refresh });
  const params = { project, sae: sae.id };
  const ready = sae.state === "ready";

  const actions = (
    <>
      {edit && ready && sae.recording && (
        <>
          <Button variant="default" onClick={() => evaluate.mutate()} loading={evaluate.isPending} disabled={running("evaluate")} data-testid="evaluate">
            {sae.evaluation ? "Evaluate again" : "Evaluate"}
          </Button>
          <Button variant="default" onClick={() => analyse.mutate()} loading={analyse.isPending} disabled={running("analyse")} data-testid="analyse">
            {sae.analysis ? "Analyse again" : "Analyse features"}
          </Button>
        </>
      )}
      {sae.analysis && <LinkButton to="/projects/$project/saes/$sae/features" params={params} data-testid="browse-features">Browse features</LinkButton>}
      {edit && ready && <ExportButton sae={sae} />}
      {edit && <RenameButton kind="saes" row={sae} />}
      {edit && <DeleteButton what={sae.name} remove={() => deleteSae(sae.id)} onDeleted={() => void navigate({ to: "/projects/$project/saes", params: { project } })} />}
    </>
  );
  const filter = sae.summary.token_filter as TokenFilter | undefined;
  const warning = (sae.summary.training as { warning?: string } | undefined)?.warning;
  const crumbs = [{ label: "SAEs", to: "/projects/$project/saes", params: { project } }];

  return (
    <Page
      title={sae.name}
      crumbs={crumbs}
      lead={<>{saeDescription(sae)} · {sae.recording_name ? `on ${sae.recording_name}` : "imported"} · {ago(sae.created_at)}</>}
      actions={actions}
    >
      <ErrorNote error={evaluate.error} doing="Starting the evaluation" />
      <ErrorNote error={analyse.error} doing="Starting the analysis" />
      {newest.filter((job) => job.state !== "succeeded").map((job) => <div key={job.id} className="panel"><Text size="sm" fw={600}>{job.title}</Text><JobOf job={job} /></div>)}
      <div className="panel">
        <Facts
          facts={[
            { label: "State", value: <StateBadge state={sae.state} /> },
            { label: "Latents", value: integer(sae.width || null) },
            { label: "k", value: integer(sae.k), title: "active latents per token" },
            { label: "Training tokens", value: compact(sae.params.tokens as number | undefined) },
            { label: "Features analysed", value: sae.analysis ? `${integer(sae.analysis.n_features)} on ${compact(sae.analysis.tokens)} tokens` : "not yet" },
            { label: "Never fired in the analysis", value: sae.analysis ? `${integer(sae.analysis.dead)} (${percent(sae.analysis.dead / sae.analysis.n_features)})` : "–" },
            ...(filter ? [{ label: filter.derived ? "Leaves out (derived)" : "Leaves out", value: <span data-testid="token-filter">{leavesOut(filter)}</span>, title: filterOrigin(filter) }] : []),
            { label: "Fingerprint", value: <span className="mono" title={sae.fingerprint}>{sae.fingerprint.slice(0, 12) || "–"}</span>, title: "hash of its weights; edits name the SAE by it" },
          ]}
        />
      </div>
      {warning && <Alert color="orange" title="Look at the training before using this SAE" data-testid="training-warning">{warning}</Alert>}
      <Assumed sae={sae} />
      <SmokeTest sae={sae} />
      {edit && ready && !sae.recording && <MeasureOn sae={sae} />}
      <Exports jobs={mine} kind="export_sae" />
      {sae.evaluation ? (
        <Report evaluation={sae.evaluation} />
      ) : (
        ready && <Empty title="Not evaluated yet">Evaluation measures reconstruction, loss recovered and density on text the SAE was not trained on.</Empty>
      )}
      {sae.job && <Training job={sae.job} />}
      {sae.artifact && <Files artifact={sae.artifact} title="Files of the SAE" />}
    </Page>
  );
}

/** Curves of the training, while it runs and afterwards. */
function Training({ job: id }: { job: string }) {
  const { data } = useQuery(jobQuery(id));
  const events = useJobHistory(id, data ? isActive(data.job) : false);
  if (!events.some((event) => event.kind === "metrics")) return null;
  return (
    <Stack gap="xs" className="panel">
      <Title order={2}>Training</Title>
      <Curves events={events} unit={data?.job.unit ?? "tokens"} />
    </Stack>
  );
}
