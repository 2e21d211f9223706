import { Button, Chip, Group, Input, Select, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { corporaQuery, modelsQuery, startRecording } from "@/api/registry";
import type { ModelFacts } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { parseNumber, splitList } from "@/forms/fields";
import { ParamsForm } from "@/forms/ParamsForm";
import { useParams } from "@/forms/useParams";
import { bytes, compact } from "@/science/format";
import { FIRST_PART, mixtureOf, type Part } from "./mixture";
import { Texts } from "./Texts";

const CHOSEN_HERE = ["layers", "dataset", "text", "dataset_config", "dataset_split", "text_field", "weights"];

interface NewRecordingProps {
  project: string;
  model?: string;
  onStarted: () => void;
  onAddCorpus: () => void;
}

export function NewRecording({ project, model: asked, onStarted, onAddCorpus }: NewRecordingProps) {
  const models = useQuery(modelsQuery(project));
  const corpora = useQuery(corporaQuery(project));
  const usable = (models.data ?? []).filter((one) => one.state === "ready");
  const read = (corpora.data ?? []).filter((one) => one.state === "ready");
  const [chosenModel, setModel] = useState<string | null>(asked ?? null);
  const [parts, setParts] = useState<Part[]>([FIRST_PART]);
  const [layers, setLayers] = useState<string[]>([]);
  const [name, setName] = useState("");
  const params = useParams("trace", CHOSEN_HERE);
  const invalidate = useInvalidate();

  const model = usable.find((one) => one.id === chosenModel) ?? usable[0];
  const first = read[0]?.id;
  const texts = parts.map((part) => ({ ...part, corpus: part.corpus ?? first ?? null }));
  const chosenTexts = texts.flatMap((part) => read.find((one) => one.id === part.corpus) ?? []);
  const facts = (model?.facts ?? {}) as ModelFacts;
  const suggested = model && chosenTexts.length > 0 ? `${model.name} on ${chosenTexts.map((one) => one.name).join(" and ")}` : "";
  const kinds = splitList(String(params.entries.site ?? "")).length;
  const tokens = parseNumber(String(params.entries.tokens ?? ""), "tokens") ?? 0;

  const start = useMutation({
    mutationFn: async () => {
      const chosen = params.collect();
      const mixture = mixtureOf(texts);
      if (!model || !mixture || !chosen || layers.length === 0) return null;
      const blocks = layers.map(Number).sort((a, b) => a - b);
      return startRecording({ model: model.id, ...mixture, name: name.trim() || suggested, params: { ...chosen, layers: blocks } });
    },
    onSuccess: async (started) => {
      if (!started) return;
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
        <ErrorNote error={start.error ?? params.error} doing="Starting the recording" shownElsewhere={["name"]} />
        <Group grow align="flex-start">
          <Select
            label="Model"
            required
            data={usable.map((one) => ({ value: one.id, label: one.name }))}
            value={model?.id ?? null}
            onChange={(value) => {
              setModel(value);
              setLayers([]);
            }}
            placeholder={usable.length === 0 ? "Add a model first" : "Choose one"}
          />
        </Group>
        <Texts corpora={read} parts={texts} onChange={setParts} onAddCorpus={onAddCorpus} tried={params.tried} />
        <Layers count={facts.n_layers ?? 0} chosen={layers} onChange={setLayers} missing={params.tried && layers.length === 0} />
        <ParamsForm specs={params.specs} entries={params.entries} onChange={params.setEntries} tried={params.tried} />
        <TextInput label="Name" placeholder={suggested} value={name} onChange={(event) => setName(event.currentTarget.value)} error={start.error ? asApiError(start.error).about("name") : undefined} />
        <Group justify="space-between">
          <Text size="xs" c="dimmed">
            {layers.length > 0 && facts.d_model && tokens > 0
              ? `About ${bytes(tokens * facts.d_model * 2 * layers.length * kinds)} on disk: ${compact(tokens)} tokens × ${facts.d_model} numbers × ${layers.length} ${layers.length === 1 ? "block" : "blocks"}${kinds > 1 ? ` × ${kinds} activations` : ""}, two bytes each${/mlp_act|attn_z/.test(String(params.entries.site)) ? "; neurons and heads are wider" : ""}.`
              : "Choose blocks to see what it needs on disk."}
          </Text>
          <Button type="submit" loading={start.isPending} disabled={!model || chosenTexts.length === 0} data-testid="recording-submit">Record</Button>
        </Group>
      </Stack>
    </form>
  );
}

interface LayersProps {
  count: number;
  chosen: string[];
  onChange: (chosen: string[]) => void;
  missing: boolean;
}

/** One button per block of the model. */
function Layers({ count, chosen, onChange, missing }: LayersProps) {
  return (
    <Input.Wrapper label="Blocks" required description="Counted from 0. Features in the middle are usually the most abstract; each block costs disk space." error={missing ? "Choose at least one." : null}>
      <Chip.Group multiple value={chosen} onChange={onChange}>
        <Group gap={4} mt={6} role="group" aria-label="Blocks">
          {Array.from({ length: count }, (_, layer) => <Chip key={layer} value={String(layer)} size="xs" radius="sm" variant="outline">{layer}</Chip>)}
        </Group>
      </Chip.Group>
    </Input.Wrapper>
  );
}
