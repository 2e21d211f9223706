import { Button, Group, Select, Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { adaptersQuery } from "@/api/adapters";
import type { AdapterSummary, EditKind, Sae } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { TextLink } from "@/components/TextLink";
import { useEditKinds } from "@/patches/kinds";
import { adapterCard, saeCard, type EditCard } from "@/patches/plan";

interface WholeEditsProps {
  project: string;
  model: string;
  saes: readonly Sae[];
  edit: boolean;
  onAdd: (card: EditCard) => void;
}

/** Adds the edits that act through no single feature: an SAE's reconstruction, or an adapter's change of weights. */
export function WholeEdits({ project, model, saes, edit, onAdd }: WholeEditsProps) {
  const adapters = useQuery(adaptersQuery(model));
  const kinds = useEditKinds();
  const of = (reference: EditKind["refers_to"]) => kinds.filter((kind) => kind.refers_to === reference);
  return (
    <Stack gap="xs" className="panel" data-testid="whole-edits">
      <Text fw={600} size="sm">Add a whole SAE or adapter</Text>
      {saes.length > 0 && of("sae").map((kind) => (
        <Choice
          key={kind.name}
          kind={kind}
          what="SAE"
          options={saes.map((sae) => ({ value: sae.id, label: `${sae.name} (${sae.site}.${sae.layer})` }))}
          onAdd={(id) => {
            const sae = saes.find((one) => one.id === id);
            if (sae) onAdd(saeCard(kind, sae, `${sae.site}.${sae.layer}`));
          }}
        />
      ))}
      <ErrorNote error={adapters.error} doing="Loading the adapters" />
      {adapters.data && adapters.data.length > 0 && of("adapter").map((kind) => (
        <Choice
          key={kind.name}
          kind={kind}
          what="adapter"
          options={adapters.data.map((adapter) => ({ value: adapter.fingerprint, label: adapter.name }))}
          onAdd={(fingerprint) => {
            const summary = adapters.data.find((one) => one.fingerprint === fingerprint)?.summary as AdapterSummary | undefined;
            // By name, so that where it can be exported is known without its files.
            onAdd(adapterCard(kind, fingerprint, summary?.modules));
          }}
        />
      ))}
      {adapters.data?.length === 0 && (
        <Text size="xs" c="dimmed">
          No LoRA adapter of this model yet.{" "}
          {edit && <TextLink to="/projects/$project/patches" params={{ project }} search={{ add: true }} fz="xs" underline="always">Bring one in</TextLink>}
        </Text>
      )}
    </Stack>
  );
}

interface ChoiceProps {
  kind: EditKind;
  /** What it is made from. */
  what: string;
  /** Not empty. */
  options: readonly { value: string; label: string }[];
  onAdd: (value: string) => void;
}

/** One of several, and a button that adds it. */
function Choice({ kind, what, options, onAdd }: ChoiceProps) {
  const [chosen, setChosen] = useState<string | null>(null);
  const option = options.find((one) => one.value === chosen) ?? options[0];
  return (
    <Group gap="xs" wrap="nowrap">
      <Select size="xs" flex={1} aria-label={`${kind.title}: which ${what}`} data={options} value={option?.value ?? null} onChange={setChosen} allowDeselect={false} />
      <Button size="xs" variant="default" title={kind.description} aria-label={`${kind.title}: add ${option?.label ?? ""}`} onClick={() => option && onAdd(option.value)} data-testid={`add-${kind.name}`}>
        {kind.title}
      </Button>
    </Group>
  );
}
