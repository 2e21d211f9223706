import { Button, Group, Select, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError, ApiError } from "@/api/errors";
import { importGraph, type GraphDetail } from "@/api/graphs";
import { modelsQuery } from "@/api/registry";
import { PIECE_BYTES, type IncomingFile } from "@/api/uploads";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { DropZone } from "@/files/DropZone";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";
import { bytes } from "@/science/format";

/** The portal takes no larger file. */
const LARGEST = 64e6;

/** The object that a file holds. */
async function contentOf(file: File): Promise<Record<string, unknown>> {
  const refused = (code: string, detail: string, hint: string) => new ApiError(0, [{ code, detail, attr: null, hint }]);
  if (file.size > LARGEST) throw refused("graph_too_large", `The file has ${bytes(file.size)}; ${bytes(LARGEST)} is the limit.`, "Prune the graph before you write it out.");
  let content: unknown;
  try {
    content = JSON.parse(await file.text());
  } catch (error) {
    throw refused("not_json", `${file.name} is not JSON: ${error instanceof Error ? error.message : String(error)}.`, "Choose the .json file of a graph.");
  }
  if (typeof content !== "object" || content === null || Array.isArray(content)) throw refused("not_a_graph", `${file.name} holds no JSON object.`, "Choose the .json file of a graph.");
  return content as Record<string, unknown>;
}

interface ImportGraphProps {
  project: string;
  onDone: (graph: GraphDetail) => void;
}

/** Brings a graph in: one of this program, or an attribution graph as circuit-tracer writes it. */
export function ImportGraph({ project, onDone }: ImportGraphProps) {
  const models = useQuery(modelsQuery(project));
  const [file, setFile] = useState<IncomingFile | null>(null);
  const [name, setName] = useState("");
  const [model, setModel] = useState<string | null>(null);
  const uploads = useUploads();
  const invalidate = useInvalidate();
  const bring = useMutation({
    mutationFn: async () => {
      const about = { project, model, name: name.trim() };
      const document = await contentOf(file!.file);
      // One request takes no more than a few megabytes.
      if (file!.file.size <= PIECE_BYTES) return importGraph({ ...about, document });
      return uploads.sendFor([file!], ([upload]) => importGraph({ ...about, upload: upload! }));
    },
    onSuccess: async (made) => {
      await invalidate("graphs", "lineage");
      onDone(made);
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    bring.mutate();
  };
  return (
    <form onSubmit={submit}>
      <Stack gap="sm">
        <DropZone
          single
          onFiles={([first]) => {
            if (!first) return;
            setFile(first);
            bring.reset();
            if (!name) setName(first.file.name.replace(/\.json$/i, "").slice(0, 120));
          }}
        >
          {file ? `${file.file.name}, ${bytes(file.file.size)}` : "Drop a graph’s .json file here: of this program, or an attribution graph of circuit-tracer or Neuronpedia."}
        </DropZone>
        <TextInput label="Name" required maxLength={120} value={name} onChange={(event) => setName(event.currentTarget.value)} error={bring.error ? asApiError(bring.error).about("name") : undefined} data-testid="import-name" />
        <Select label="Model it is of" description="Only with one of the project’s models can heads be asked why they attend." placeholder="none of this project" clearable allowDeselect data={(models.data ?? []).filter((one) => one.state === "ready").map((one) => ({ value: one.id, label: one.name }))} value={model} onChange={setModel} />
        <UploadProgress uploads={uploads} />
        <ErrorNote error={bring.error} doing="Bringing the graph in" shownElsewhere={["name"]} />
        <Group justify="space-between">
          <Text size="xs" c="dimmed">It is checked before it is kept.</Text>
          <Button type="submit" disabled={!file || !name.trim()} loading={bring.isPending} data-testid="import-graph">Bring it in</Button>
        </Group>
      </Stack>
    </form>
  );
}
