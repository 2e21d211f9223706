import { Alert, Button, Group, Select, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { recordingsQuery } from "@/api/registry";
import { trainSae } from "@/api/saes";
import type { FieldSpec, Preset, RecordingSummary } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { entriesOf, fieldLabel, parseNumber, type Entries } from "@/forms/fields";
import { ParamsForm } from "@/forms/ParamsForm";
import { useParams } from "@/forms/useParams";
import { compact, duration, number } from "@/science/format";
import { recordedSites, siteLabel, siteName } from "@/science/sites";

const CHOSEN_HERE = ["layer", "site", "layer_out", "site_out"];
const ITSELF = "itself";

interface TrainSaeProps {
  project: string;
  recording?: string;
  onStarted: (sae: string) => void;
}

export function TrainSae({ project, recording: asked, onStarted }: TrainSaeProps) {
  const recordings = useQuery(recordingsQuery(project));
  const usable = (recordings.data ?? []).filter((one) => one.state === "ready");
  const [chosen, setChosen] = useState<string | null>(asked ?? null);
  const [chosenSource, setSource] = useState<string | null>(null);
  const [chosenTarget, setTarget] = useState<string>(ITSELF);
  const [name, setName] = useState("");
  const transcodes = chosenTarget !== ITSELF;
  // A linear path around the latents makes sense only where input and output are two things.
  const params = useParams("train", transcodes ? CHOSEN_HERE : [...CHOSEN_HERE, "skip"]);
  const invalidate = useInvalidate();

  const recording = usable.find((one) => one.id === chosen) ?? usable[0];
  const sites = recording ? recordedSites(recording) : [];
  const source = sites.find((one) => siteName(one) === chosenSource) ?? sites[0];
  const targets = sites.filter((one) => one !== source);
  const target = targets.find((one) => siteName(one) === chosenTarget);
  const { arch, width, k, tokens } = params.entries;
  const where = !source ? "" : target ? `${siteName(source)} to ${siteName(target)}` : source.kind === "resid_post" ? `Block ${source.layer}` : siteName(source);
  const suggested = source ? `${where}, ${String(arch ?? "")} ${String(width ?? "")}, k ${String(k ?? "")}` : "";
  const available = (recording?.summary as RecordingSummary | undefined)?.train_tokens;
  const wanted = parseNumber(String(tokens ?? ""), "tokens");

  const train = useMutation({
    mutationFn: async () => {
      const values = params.collect();
      if (!recording || !source || !values) return null;
      const to = target ? { site_out: target.kind, layer_out: target.layer } : {};
      return trainSae({ recording: recording.id, name: name.trim() || suggested, params: { ...values, site: source.kind, layer: source.layer, ...to } });
    },
    onSuccess: async (started) => {
      if (!started) return;
      await invalidate("saes", "jobs", "lineage");
      onStarted(started.sae.id);
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    train.mutate();
  };

  return (
    <form onSubmit={submit}>
      <Stack gap="md">
        <ErrorNote error={train.error ?? params.error} doing="Starting the training" shownElsewhere={["name"]} />
        <Group grow align="flex-start">
          <Select
            label="Recording"
            required
            data={usable.map((one) => ({ value: one.id, label: one.name }))}
            value={recording?.id ?? null}
            onChange={setChosen}
            placeholder={usable.length === 0 ? "Record activations first" : "Choose one"}
          />
          <Select
            label="Reads"
            required
            data={sites.map((one) => ({ value: siteName(one), label: siteLabel(one) }))}
            value={source ? siteName(source) : null}
            onChange={setSource}
            data-testid="train-source"
          />
          <Select
            label="Writes"
            required
            data={[{ value: ITSELF, label: "the same, as an SAE" }, ...targets.map((one) => ({ value: siteName(one), label: `${siteLabel(one)}, as a transcoder` }))]}
            value={target ? siteName(target) : ITSELF}
            onChange={(value) => setTarget(value ?? ITSELF)}
            data-testid="train-target"
          />
        </Group>
        {params.preset && <Recipe preset={params.preset} specs={params.specs} entries={params.entries} transcodes={transcodes} />}
        <ParamsForm specs={params.specs} entries={params.entries} onChange={params.setEntries} tried={params.tried} />
        <TextInput label="Name" placeholder={suggested} value={name} onChange={(event) => setName(event.currentTarget.value)} error={train.error ? asApiError(train.error).about("name") : undefined} />
        <Group justify="space-between">
          <Text size="xs" c="dimmed">
            {available && wanted ? `The recording has ${compact(available)} tokens for training: ${(wanted / available).toFixed(1)} passes over it.` : ""}
          </Text>
          <Button type="submit" loading={train.isPending} disabled={!source} data-testid="train-submit">Train</Button>
        </Group>
      </Stack>
    </form>
  );
}

/** What a recipe reached where it was measured, said before the run starts. */
function Recipe({ preset, specs, entries, transcodes }: { preset: Preset; specs: readonly FieldSpec[]; entries: Entries; transcodes: boolean }) {
  const own = entriesOf(specs, preset.values);
  const changed = specs.filter((spec) => spec.name in own && own[spec.name] !== entries[spec.name]);
  return (
    <Alert variant="light" title={preset.title} data-testid="recipe">
      <Text size="sm">
        Expected: held-out FVU <b data-testid="expected-fvu">{number(preset.fvu)}</b> after about <b data-testid="expected-minutes">{duration(60 * preset.minutes)}</b> of training.
      </Text>
      <Text size="xs" c="dimmed">Measured on {preset.measured}.{changed.length > 0 && ` Changed here: ${changed.map((spec) => fieldLabel(spec.name)).join(", ")}; expect something else.`}{transcodes && " That was an SAE: a transcoder reaches something else."}</Text>
    </Alert>
  );
}
