import { Button, Modal, Stack } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { modelsQuery } from "@/api/registry";
import { useProjectId, useRights } from "@/app/project";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { AddModel } from "./AddModel";
import { ModelCard } from "./ModelCard";

export function Models() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const { add } = useSearch({ from: "/signed-in/projects/$project/models" });
  const navigate = useNavigate();
  const models = useQuery(modelsQuery(project));
  const adding = (on: boolean) => void navigate({ to: ".", search: { add: on || undefined } });
  const button = edit && <Button onClick={() => adding(true)} data-testid="add-model">Add a model</Button>;

  return (
    <Page title="Models" lead="Language models of this project. A model must be in memory for the patch lab; recording loads it by itself." actions={button}>
      <Loaded query={models} what="the models">
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="No models yet" action={button}>Add one from the Hugging Face Hub, a folder on the server, or a GGUF file.</Empty>
          ) : (
            <Stack gap="sm">{rows.map((model) => <ModelCard key={model.id} model={model} edit={edit} />)}</Stack>
          )
        }
      </Loaded>
      <Modal opened={add === true && edit} onClose={() => adding(false)} title="Add a model" size="lg">
        <AddModel project={project} onAdded={() => adding(false)} />
      </Modal>
    </Page>
  );
}
