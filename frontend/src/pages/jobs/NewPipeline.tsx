import { Button, Checkbox, Fieldset, Group, Select, Stack, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { startPipeline } from "@/api/jobs";
import { corporaQuery, modelsQuery } from "@/api/registry";
import type { ModelFacts } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { ParamsForm } from "@/forms/ParamsForm";
import { useParams } from "@/forms/useParams";

const RECORDED = ["layers", "site", "dataset", "text", "dataset_config", "dataset_split", "text_field"];
const TRAINED = ["layer", "site"];

/** From a model and a text to described features, in one request. */
export function NewPipeline({ project, onStarted }: { project: string; onStarted: () => void }) {
  const models = useQuery(modelsQuery(project));
  const corpora = useQuery(corporaQuery(project));
  const read = (corpora.data ?? []).filter((one) => one.state === "ready");
  const usable = (models.data ?? []).filter((one) => one.state === "ready");
  const [chosenModel, setModel] = useState<string | null>(null);
  const [chosenCorpus, setCorpus] = useState<string | null>(null);
  const [chosenLayer, setLayer] = useState<string | null>(null);
  const [name, setName] = useState("");
  const [evaluate, setEvaluate] = useState(true);
  const [analyse, setAnalyse] = useState(true);
  const trace = useParams("trace", RECORDED);
  const train = useParams("train", TRAINED);
  const queries = useQueryClient();

  const model = usable.find((one) => one.id === chosenModel) ?? usable[0];
  const corpus = read.find((one) => one.id === chosenCorpus) ?? read[0];
  const blocks = ((model?.facts ?? {}) as ModelFacts).n_layers ?? 0;
  const layer = chosenLayer === null || Number(chosenLayer) >= blocks ? Math.floor(blocks / 2) : Number(chosenLayer);
  const suggested = model && corpus ? `${model.name} on ${corpus.name}, block ${layer}` : "";

  const start = useMutation({
    mutationFn: async () => {
      const recorded = trace.collect();
      const trained = train.collect();
      if (!model || !corpus || !recorded || !trained) return null;
      return startPipeline({
        name: name.trim() || suggested,
        model: model.id,
        corpus: corpus.id,
        trace: { ...recorded, layers: [layer] },
        train: { ...trained, layer },
        evaluate: evaluate ? {} : null,
        analyse: analyse ? {} : null,
      });
    },
    onSuccess: async (started) => {
      if (!started) return;
      await queries.invalidateQueries();
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
        <ErrorNote error={start.error ?? trace.error ?? train.error} doing="Starting" shownElsewhere={["name"]} />
        <Group grow align="flex-start">
          <Select label="Model" required data={usable.map((one) => ({ value: one.id, label: one.name }))} value={model?.id ?? null} onChange={setModel} placeholder={usable.length === 0 ? "Add a model first" : "Choose one"} />
          <Select label="Corpus" required data={read.map((one) => ({ value: one.id, label: one.name }))} value={corpus?.id ?? null} onChange={setCorpus} placeholder={corpora.data?.length === 0 ? "Add a corpus first" : "Choose one"} />
          <Select label="Block" required searchable data={Array.from({ length: blocks }, (_, block) => String(block))} value={blocks ? String(layer) : null} onChange={setLayer} />
        </Group>
        <Fieldset legend="Record">
          <ParamsForm specs={trace.specs} entries={trace.entries} onChange={trace.setEntries} tried={trace.tried} />
        </Fieldset>
        <Fieldset legend="Train">
          <ParamsForm specs={train.specs} entries={train.entries} onChange={train.setEntries} tried={train.tried} />
        </Fieldset>
        <Fieldset legend="Then">
          <Group>
            <Checkbox label="Evaluate it on held-out text" checked={evaluate} onChange={(event) => setEvaluate(event.currentTarget.checked)} />
            <Checkbox label="Analyse its features" checked={analyse} onChange={(event) => setAnalyse(event.currentTarget.checked)} />
          </Group>
        </Fieldset>
        <TextInput label="Name" placeholder={suggested} value={name} onChange={(event) => setName(event.currentTarget.value)} error={start.error ? asApiError(start.error).about("name") : undefined} />
        <Group justify="flex-end">
          <Button type="submit" loading={start.isPending} disabled={!model || !corpus} data-testid="pipeline-submit">Start all</Button>
        </Group>
      </Stack>
    </form>
  );
}
