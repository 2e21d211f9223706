import { Button, Group, Modal, Stack, TextInput } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { importProject } from "@/api/bundles";
import { asApiError } from "@/api/errors";
import { projectsQuery } from "@/api/projects";
import type { IncomingFile } from "@/api/uploads";
import { ErrorNote } from "@/components/ErrorNote";
import { DropZone } from "@/files/DropZone";
import { suggestedName } from "@/files/dropped";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";
import { bytes } from "@/science/format";

/** Make a project of an archive that this or another instance has exported. */
export function ImportProject({ opened, onClose }: { opened: boolean; onClose: () => void }) {
  const [files, setFiles] = useState<IncomingFile[]>([]);
  const [name, setName] = useState("");
  const uploads = useUploads();
  const queries = useQueryClient();
  const navigate = useNavigate();
  const file = files[0];
  const called = name.trim() || suggestedName(files);
  const start = useMutation({
    mutationFn: () => uploads.sendFor(files, (ids) => importProject({ name: called, uploads: ids })),
    onSuccess: async (started) => {
      await queries.invalidateQueries({ queryKey: projectsQuery.queryKey });
      await navigate({ to: "/jobs/$job", params: { job: started.job.id } });
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    start.mutate();
  };
  return (
    <Modal opened={opened} onClose={onClose} title="Import a project" size="lg">
      <form onSubmit={submit}>
        <Stack>
          <ErrorNote error={start.error} doing="Importing the project" shownElsewhere={["name"]} />
          <DropZone onFiles={(found) => setFiles(found.slice(0, 1))} single disabled={start.isPending}>
            {file ? `${file.path}, ${bytes(file.file.size)}` : "Drop an archive here that “Export the project” has made."}
          </DropZone>
          <TextInput
            label="Name of the new project"
            placeholder={suggestedName(files)}
            maxLength={120}
            value={name}
            onChange={(event) => setName(event.currentTarget.value)}
            error={start.error ? asApiError(start.error).about("name") : undefined}
          />
          <UploadProgress uploads={uploads} />
          <Group justify="flex-end">
            <Button variant="default" onClick={onClose}>Cancel</Button>
            <Button type="submit" loading={start.isPending} disabled={!file || !called} data-testid="import-project-submit">Import</Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
