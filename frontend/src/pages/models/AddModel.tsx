import { Button, Group, SegmentedControl, Select, SimpleGrid, Stack, Text, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { addModel } from "@/api/registry";
import { rounded } from "./rounding";
import type { Model } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";

type Source = Model["source"];
type Dtype = Model["dtype"];

const SOURCES: Record<Source, { label: string; reference: string; placeholder: string; help: string }> = {
  hub: {
    label: "Hugging Face Hub",
    reference: "Hub id",
    placeholder: "HuggingFaceTB/SmolLM2-135M",
    help: "owner/name, as on the Hub. The server needs access to it.",
  },
  folder: {
    label: "Folder",
    reference: "Folder on the server",
    placeholder: "my-model",
    help: "With config.json, a tokenizer and safetensors weights; relative to the server’s model folder.",
  },
  gguf: {
    label: "GGUF file",
    reference: "File on the server",
    placeholder: "SmolLM2-135M.Q4_1.gguf",
    help: "Relative to the server’s model folder. Weights are unpacked to full precision.",
  },
};

const DTYPES: { value: Dtype; label: string }[] = [
  { value: "auto", label: "automatic" },
  { value: "float32", label: "float32" },
  { value: "bfloat16", label: "bfloat16" },
  { value: "float16", label: "float16" },
  { value: "int8", label: "int8: weights rounded to 8 bits" },
  { value: "nf4", label: "nf4: weights rounded to 4 bits" },
];

/** "HuggingFaceTB/SmolLM2-135M" → "SmolLM2-135M". */
function nameFrom(reference: string): string {
  return reference.trim().replace(/\/+$/, "").split("/").at(-1)?.replace(/\.gguf$/i, "") ?? "";
}

export function AddModel({ project, onAdded }: { project: string; onAdded: () => void }) {
  const [source, setSource] = useState<Source>("hub");
  const [reference, setReference] = useState("");
  const [name, setName] = useState("");
  const [revision, setRevision] = useState("");
  const [dtype, setDtype] = useState<Dtype>("auto");
  const invalidate = useInvalidate();
  const texts = SOURCES[source];
  const add = useMutation({
    mutationFn: () => addModel({ project, name: name.trim() || nameFrom(reference), source, reference: reference.trim(), revision: revision.trim(), dtype }),
    onSuccess: async () => {
      await invalidate("models", "jobs", "lineage");
      onAdded();
    },
  });
  const about = (field: string) => (add.error ? asApiError(add.error).about(field) : undefined);
  // What was refused is no longer what the form says.
  const change = (value: string) => {
    setReference(value);
    if (add.isError) add.reset();
  };
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    add.mutate();
  };

  return (
    <form onSubmit={submit}>
      <Stack gap="sm">
        <ErrorNote error={add.error} doing="Adding the model" shownElsewhere={["reference", "name", "revision"]} />
        <SegmentedControl
          aria-label="Where the model is"
          value={source}
          onChange={(value) => setSource(value as Source)}
          data={Object.entries(SOURCES).map(([value, { label }]) => ({ value, label }))}
        />
        <TextInput
          label={texts.reference}
          description={texts.help}
          placeholder={texts.placeholder}
          required
          data-autofocus
          value={reference}
          onChange={(event) => change(event.currentTarget.value)}
          error={about("reference")}
          data-testid="model-reference"
        />
        <SimpleGrid cols={{ base: 1, xs: 3 }} spacing="sm">
          <TextInput label="Name" placeholder={nameFrom(reference)} value={name} onChange={(event) => setName(event.currentTarget.value)} error={about("name")} data-testid="model-name" />
          <TextInput label="Revision" placeholder="newest" disabled={source !== "hub"} value={revision} onChange={(event) => setRevision(event.currentTarget.value)} error={about("revision")} />
          <Select label="Precision" data={DTYPES} value={dtype} onChange={(value) => setDtype((value ?? "auto"))} />
        </SimpleGrid>
        <Text size="xs" c="dimmed">
          {rounded(dtype)
            ? "It is loaded twice next, whole and rounded, to measure what rounding does to its predictions; that takes as long as loading does. A rounded model is another model than the whole one: recordings and SAEs belong to it alone."
            : "Its configuration is read next; what it needs in memory shows within seconds, before anything is loaded."}
        </Text>
        <Group justify="flex-end">
          <Button type="submit" loading={add.isPending} data-testid="model-submit">Add</Button>
        </Group>
      </Stack>
    </form>
  );
}
