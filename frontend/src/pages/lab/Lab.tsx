import { Group, Select } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { editKindsQuery, patchQuery } from "@/api/patches";
import { modelsQuery } from "@/api/registry";
import { saesQuery } from "@/api/saes";
import type { LabSearch } from "@/app/search";
import { useProjectId, useRights } from "@/app/project";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { Workspace } from "./Workspace";

/** The patch lab: edits of a model's features, and what they do to its next token, live. */
export function Lab() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const search = useSearch({ from: "/signed-in/projects/$project/lab" });
  const navigate = useNavigate();
  const models = useQuery(modelsQuery(project));
  const saes = useQuery(saesQuery(project));
  const kinds = useQuery(editKindsQuery);
  const patch = useQuery({ ...patchQuery(search.patch ?? ""), enabled: search.patch !== undefined });
  const change = (part: Partial<LabSearch>) => void navigate({ to: ".", search: { ...search, ...part }, replace: true });

  return (
    <Loaded query={models} what="the models" rows={8}>
      {(rows) => {
        const usable = rows.filter((model) => model.state === "ready");
        const asked = patch.data?.model ?? search.model;
        const withSae = usable.find((model) => saes.data?.some((sae) => sae.model === model.id));
        const model = usable.find((one) => one.id === asked) ?? withSae ?? usable[0];
        if (!model) {
          return (
            <Page title="Patch lab">
              <Empty title="No model yet" action={edit && <LinkButton to="/projects/$project/models" params={{ project }} search={{ add: true }}>Add a model</LinkButton>}>
                The lab changes features of a model and shows what that does to its next token.
              </Empty>
            </Page>
          );
        }
        const waiting = search.patch !== undefined && patch.isPending;
        const chooser = usable.length > 1 && (
          <Select
            size="xs"
            aria-label="Model"
            data={usable.map((one) => ({ value: one.id, label: one.name }))}
            value={model.id}
            onChange={(value) => void navigate({ to: ".", search: { model: value ?? undefined, prompt: search.prompt } })}
          />
        );
        return (
          <Page title={patch.data ? `${patch.data.name}: patch lab` : "Patch lab"} heading="Patch lab" lead={model.name} actions={<Group gap="xs">{chooser}<LinkButton to="/projects/$project/patches" params={{ project }} variant="default">All patches</LinkButton></Group>}>
            <ErrorNote error={search.patch ? patch.error : null} doing="Loading the patch" retry={() => void patch.refetch()} />
            <ErrorNote error={kinds.error} doing="Loading the kinds of edits" retry={() => void kinds.refetch()} />
            {!waiting && saes.data && kinds.data && (
              <Workspace
                key={model.id}
                project={project}
                model={model}
                saes={saes.data.filter((sae) => sae.model === model.id && sae.state === "ready")}
                kinds={kinds.data}
                patch={patch.data}
                search={search}
                onSearch={change}
                edit={edit}
              />
            )}
          </Page>
        );
      }}
    </Loaded>
  );
}
