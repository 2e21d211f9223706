import { Button, FileInput, Group, Select, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { importAdapter } from "@/api/adapters";
import { asApiError } from "@/api/errors";
import { modelsQuery } from "@/api/registry";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";
import { adapterFilesProblem } from "@/patches/exports";

interface ImportAdapterProps {
  project: string;
  onStarted: () => void;
}

/** Two files as PEFT saves them become a patch, which is off until somebody switches it on. */
export function ImportAdapter({ project, onStarted }: ImportAdapterProps) {
  const models = useQuery(modelsQuery(project));
  const usable = (models.data ?? []).filter((one) => one.state === "ready");
  const [chosen, setChosen] = useState<string | null>(null);
  const [files, setFiles] = useState<File[]>([]);
  const [name, setName] = useState("");
  const uploads = useUploads();
  const invalidate = useInvalidate();
  const model = usable.find((one) => one.id === chosen) ?? usable[0];
  const problem = files.length > 0 ? adapterFilesProblem(files.map((file) => file.name)) : null;

  const bring = useMutation({
    mutationFn: async () => {
      if (!model) throw new Error("Choose a model.");
      return uploads.sendFor(
        files.map((file) => ({ path: file.name, file })),
        (ids) => importAdapter({ model: model.id, name: name.trim() || "Imported adapter", uploads: ids }),
      );
    },
    onSuccess: async () => {
      await invalidate("patches", "jobs", "lineage");
      onStarted();
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    bring.mutate();
  };

  return (
    <form onSubmit={submit}>
      <Stack gap="sm">
        <ErrorNote error={bring.error} doing="Importing the adapter" shownElsewhere={["name"]} />
        <Select
          label="Model"
          required
          data={usable.map((one) => ({ value: one.id, label: one.name }))}
          value={model?.id ?? null}
          onChange={setChosen}
          placeholder={usable.length === 0 ? "Add a model first" : "Choose one"}
        />
        <FileInput
          label="Files"
          description="adapter_config.json and adapter_model.safetensors, as PEFT saves them. They are checked against the model; pickles are refused."
          placeholder="Choose both files"
          multiple
          required
          accept=".json,.safetensors"
          value={files}
          onChange={setFiles}
          error={problem}
        />
        <TextInput label="Name" placeholder="Imported adapter" value={name} onChange={(event) => setName(event.currentTarget.value)} error={bring.error ? asApiError(bring.error).about("name") : undefined} />
        <UploadProgress uploads={uploads} />
        <Group justify="space-between">
          <Text size="xs" c="dimmed" flex="1 1 16rem">The patch appears in the list once the files have been checked; it is off until you switch it on.</Text>
          <Button type="submit" ml="auto" loading={bring.isPending} disabled={!model || files.length === 0 || problem !== null}>Import</Button>
        </Group>
      </Stack>
    </form>
  );
}
