import { Button, Group, Select, SimpleGrid, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { modelsQuery, recordingsQuery } from "@/api/registry";
import { importSae } from "@/api/saes";
import type { IncomingFile } from "@/api/uploads";
import { useInvalidate } from "@/api/useInvalidate";
import { useProjectId } from "@/app/project";
import { ErrorNote } from "@/components/ErrorNote";
import { Page } from "@/components/Page";
import { suggestedName, summaryOf } from "@/files/dropped";
import { DropZone } from "@/files/DropZone";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";
import { ParamsForm } from "@/forms/ParamsForm";
import { useParams } from "@/forms/useParams";

/** Bring a colleague's SAE in: drop its folder, say which model it is of, see how it does on real activations. */
export function ImportSae() {
  const project = useProjectId();
  const models = useQuery(modelsQuery(project));
  const recordings = useQuery(recordingsQuery(project));
  const [files, setFiles] = useState<IncomingFile[]>([]);
  const [chosenModel, setModel] = useState<string | null>(null);
  const [recording, setRecording] = useState<string | null>(null);
  const [name, setName] = useState("");
  const params = useParams("import_sae");
  const uploads = useUploads();
  const invalidate = useInvalidate();
  const navigate = useNavigate();

  const usable = (models.data ?? []).filter((one) => one.state === "ready");
  const model = usable.find((one) => one.id === chosenModel) ?? usable[0];
  const mine = (recordings.data ?? []).filter((one) => one.state === "ready" && one.model === model?.id);
  const suggested = suggestedName(files);

  const start = useMutation({
    mutationFn: async () => {
      const values = params.collect();
      if (!model || !values) return null;
      return uploads.sendFor(files, (ids) =>
        importSae({ model: model.id, recording, name: name.trim() || suggested, uploads: ids, params: values }),
      );
    },
    onSuccess: async (started) => {
      if (!started) return;
      await invalidate("saes", "jobs", "lineage");
      await navigate({ to: "/projects/$project/saes/$sae", params: { project, sae: started.sae.id } });
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    start.mutate();
  };

  return (
    <Page
      title="Import an SAE"
      crumbs={[{ label: "SAEs", to: "/projects/$project/saes", params: { project } }]}
      lead="From SAELens, sparsify, dictionary_learning, Gemma Scope, Llama Scope or another instance. Files are checked before they are read, and the SAE is tested on real activations."
    >
      <form onSubmit={submit} className="panel">
        <Stack gap="md">
          <ErrorNote error={start.error ?? params.error} doing="Importing" shownElsewhere={["name"]} />
          <DropZone onFiles={setFiles} disabled={start.isPending}>
            {files.length === 0
              ? "Drop the SAE’s folder here: its .safetensors (or Gemma Scope’s params.npz) and configuration."
              : summaryOf(files)}
          </DropZone>
          <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="md" className="fields">
            <Select
              label="Model"
              required
              description="The model it was trained on."
              data={usable.map((one) => ({ value: one.id, label: one.name }))}
              value={model?.id ?? null}
              onChange={(value) => {
                setModel(value);
                setRecording(null);
              }}
              placeholder={usable.length === 0 ? "Add a model first" : "Choose one"}
            />
            <Select
              label="Test it on"
              description="Without a recording, on what the model computes on a short text."
              clearable
              data={mine.map((one) => ({ value: one.id, label: one.name }))}
              value={recording}
              onChange={setRecording}
              placeholder="a short text"
            />
          </SimpleGrid>
          <ParamsForm specs={params.specs} entries={params.entries} onChange={params.setEntries} tried={params.tried} />
          <TextInput
            label="Name"
            placeholder={suggested}
            value={name}
            onChange={(event) => setName(event.currentTarget.value)}
            error={start.error ? asApiError(start.error).about("name") : undefined}
          />
          <UploadProgress uploads={uploads} />
          <Group justify="space-between">
            <Text size="xs" c="dimmed" flex="1 1 16rem">Pickles (.pt) are refused here; convert them on your machine with <code>microscope import --allow-pickle</code>.</Text>
            <Button type="submit" ml="auto" loading={start.isPending} disabled={files.length === 0 || !model || !(name.trim() || suggested)} data-testid="import-submit">Import</Button>
          </Group>
        </Stack>
      </form>
    </Page>
  );
}
