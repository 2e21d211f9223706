import { Button, Group, Select, Stack, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { importRecording, modelsQuery } from "@/api/registry";
import type { IncomingFile } from "@/api/uploads";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { suggestedName, summaryOf } from "@/files/dropped";
import { DropZone } from "@/files/DropZone";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";

/** Bring a recording in: its folder or its archive, and the model it was made of. */
export function ImportRecording({ project, onStarted }: { project: string; onStarted: () => void }) {
  const models = useQuery(modelsQuery(project));
  const [files, setFiles] = useState<IncomingFile[]>([]);
  const [chosen, setModel] = useState<string | null>(null);
  const [name, setName] = useState("");
  const uploads = useUploads();
  const invalidate = useInvalidate();
  const usable = (models.data ?? []).filter((one) => one.state === "ready");
  const model = usable.find((one) => one.id === chosen) ?? usable[0];
  const suggested = suggestedName(files);

  const start = useMutation({
    mutationFn: async () => {
      if (!model) return;
      await uploads.sendFor(files, (ids) => importRecording({ model: model.id, name: name.trim() || suggested, uploads: ids }));
      await invalidate("recordings", "jobs", "lineage");
      onStarted();
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    start.mutate();
  };

  return (
    <form onSubmit={submit}>
      <Stack gap="md">
        <ErrorNote error={start.error} doing="Importing" shownElsewhere={["name"]} />
        <DropZone onFiles={setFiles} disabled={start.isPending}>
          {files.length === 0 ? "Drop the folder that microscope trace has written, or the archive of an export. Every value is checked, and so are the weights it was made of." : summaryOf(files)}
        </DropZone>
        <Select
          label="Model"
          required
          description="The model it was recorded of."
          data={usable.map((one) => ({ value: one.id, label: one.name }))}
          value={model?.id ?? null}
          onChange={setModel}
          placeholder={usable.length === 0 ? "Add a model first" : "Choose one"}
        />
        <TextInput
          label="Name"
          placeholder={suggested}
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          error={start.error ? asApiError(start.error).about("name") : undefined}
        />
        <UploadProgress uploads={uploads} />
        <Group justify="flex-end">
          <Button type="submit" loading={start.isPending} disabled={files.length === 0 || !model || !(name.trim() || suggested)} data-testid="import-submit">Import</Button>
        </Group>
      </Stack>
    </form>
  );
}
