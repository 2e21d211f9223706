import { Button, Group, Modal, Stack, Switch, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { isActive, jobsQuery } from "@/api/jobs";
import { deletePatch, patchesQuery, togglePatch } from "@/api/patches";
import type { Patch } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { useProjectId, useRights } from "@/app/project";
import { DeleteButton } from "@/components/DeleteButton";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { JobOf } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { TextLink } from "@/components/TextLink";
import { useEditKinds } from "@/patches/kinds";
import { editSentence } from "@/patches/words";
import { ago } from "@/science/format";
import { ExportPanel } from "./ExportPanel";
import { ImportAdapter } from "./ImportAdapter";
import { Versions } from "./Versions";

export function Patches() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const patches = useQuery(patchesQuery(project));
  const shown = useSearch({ from: "/signed-in/projects/$project/patches" });
  const navigate = useNavigate();
  const show = (search: { export?: string; add?: true }) => void navigate({ to: ".", search });
  const exported = patches.data?.find((patch) => patch.id === shown.export);
  const lab = <LinkButton to="/projects/$project/lab" params={{ project }} data-testid="open-lab">Open the patch lab</LinkButton>;
  return (
    <Page title="Patches" lead="Named edits of a model’s features. Patches that are on apply to inference over the API." actions={<Group gap="xs">{edit && <Button variant="default" onClick={() => show({ add: true })} data-testid="import-adapter">Bring an adapter in</Button>}{lab}</Group>}>
      <Underway project={project} />
      <Loaded query={patches} what="the patches">
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="No patches yet" action={lab}>Put features on the stack in the lab, see what they do, and save the stack under a name.</Empty>
          ) : (
            <Stack gap="sm">{rows.map((patch) => <PatchCard key={patch.id} patch={patch} edit={edit} onExport={() => show({ export: patch.id })} />)}</Stack>
          )
        }
      </Loaded>
      <Modal opened={exported !== undefined} onClose={() => show({})} title={exported && `Take “${exported.name}” out`} size="xl">
        {exported && <ExportPanel patch={exported} />}
      </Modal>
      <Modal opened={shown.add === true && edit} onClose={() => show({})} title="Bring a LoRA adapter in" size="lg">
        <ImportAdapter project={project} onStarted={() => show({})} />
      </Modal>
    </Page>
  );
}

/** Adapters that are being checked, and the newest one when it was refused. */
function Underway({ project }: { project: string }) {
  const { data } = useQuery(jobsQuery({ project }));
  const imports = (data ?? []).filter((job) => job.kind === "import_adapter");
  return imports.filter((job, place) => isActive(job) || (place === 0 && job.state === "failed")).map((job) => (
    <section key={job.id} className="panel" aria-label={job.title} data-testid="adapter-underway">
      <Text fw={600} size="sm">{job.title}</Text>
      <JobOf job={job} />
    </section>
  ));
}

interface PatchCardProps {
  patch: Patch;
  edit: boolean;
  onExport: () => void;
}

function PatchCard({ patch, edit, onExport }: PatchCardProps) {
  const kinds = useEditKinds();
  const invalidate = useInvalidate();
  const refresh = () => invalidate("patches", "lineage");
  const toggle = useMutation({ mutationFn: (enabled: boolean) => togglePatch(patch.id, enabled), onSettled: refresh });
  const on = toggle.isPending ? toggle.variables : patch.enabled;
  return (
    <section className="panel" aria-label={patch.name} data-testid="patch-row" data-patch={patch.id} data-enabled={patch.enabled}>
      <Group justify="space-between" align="flex-start">
        <div style={{ minWidth: 0 }}>
          <TextLink to="/projects/$project/lab" params={{ project: patch.project }} search={{ patch: patch.id }} fw={600} fz="md">{patch.name}</TextLink>
          <Text size="xs" c="dimmed">{patch.model_name} · version {patch.version} · {patch.created_by ?? "–"} · changed {ago(patch.updated_at)}</Text>
          {patch.description && <Text size="sm">{patch.description}</Text>}
        </div>
        <Switch
          label={on ? "on" : "off"}
          aria-label={`${patch.name} is ${on ? "on" : "off"}`}
          checked={on}
          disabled={!edit}
          onChange={(event) => toggle.mutate(event.currentTarget.checked)}
          data-testid="patch-toggle"
        />
      </Group>
      <ul style={{ margin: "0.4rem 0", paddingLeft: "1.2rem", fontSize: "0.8125rem" }}>
        {patch.plan.edits.map((one, place) => <li key={place}>{editSentence(one, kinds)}</li>)}
      </ul>
      <ErrorNote error={toggle.error} doing="Switching the patch" />
      <Group justify="space-between" align="flex-start">
        <Versions patch={patch} edit={edit} onRestored={() => void refresh()} />
        <Group gap="xs" align="flex-start">
          <Button variant="default" onClick={onExport} aria-label={`Export ${patch.name}`} data-testid="export-patch">Export</Button>
          {edit && <DeleteButton what={patch.name} remove={() => deletePatch(patch.id)} onDeleted={() => void refresh()} />}
        </Group>
      </Group>
    </section>
  );
}
