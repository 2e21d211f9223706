import { Group, Stack, Text, Title } from "@mantine/core";
import { deleteModel } from "@/api/registry";
import type { Model, ModelFacts } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { DeleteButton } from "@/components/DeleteButton";
import { Facts, type Fact } from "@/components/Facts";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { RenameButton } from "@/components/RenameButton";
import { ResidentControls } from "@/components/ResidentControls";
import { StateBadge } from "@/components/StateBadge";
import { bytes, compact, integer } from "@/science/format";
import { runningFacts } from "@/science/running";
import { roundingFacts } from "./rounding";

function factsOf(model: Model): Fact[] {
  const facts = model.facts as ModelFacts;
  const memory = Object.entries(facts.bytes_needed ?? {}).map(([dtype, size]) => ({
    label: `Memory at ${dtype}`,
    value: bytes(size),
    title: "weights, caches and a margin",
  }));
  return [
    { label: "Parameters", value: compact(facts.parameters) },
    { label: "Blocks", value: integer(facts.n_layers) },
    { label: "Width", value: integer(facts.d_model) },
    { label: "Vocabulary", value: integer(facts.vocab_size) },
    { label: "Context", value: integer(facts.max_context), title: "longest text it reads, in tokens" },
    { label: "Family", value: facts.family ?? "–" },
    ...(facts.text_part_of
      ? [{ label: "Text part of", value: facts.text_part_of, title: "images and sound are not read, and their weights not loaded" }]
      : []),
    ...memory,
    ...roundingFacts(facts),
    ...runningFacts(model.resident?.running),
  ];
}

export function ModelCard({ model, edit }: { model: Model; edit: boolean }) {
  const invalidate = useInvalidate();
  const job = useJobAbout(model.project, model.id);
  const project = model.project;
  return (
    <section className="panel" aria-label={model.name} data-testid="model-card" data-model={model.id} data-state={model.state}>
      <Stack gap="sm">
        <Group justify="space-between" align="flex-start">
          <div style={{ minWidth: 0 }}>
            <Title order={2} style={{ overflowWrap: "anywhere" }}>{model.name}</Title>
            <Text size="xs" c="dimmed" style={{ overflowWrap: "anywhere" }}>
              {model.source} · {model.reference}{model.revision && ` @ ${model.revision}`}{model.dtype !== "auto" && ` · ${model.dtype}`}
            </Text>
          </div>
          {model.state !== "ready" && <StateBadge state={model.state} />}
        </Group>
        {model.state === "ready" && <Facts facts={factsOf(model)} />}
        {model.state !== "ready" && <JobOf job={job} />}
        <Group justify="space-between">
          <Stack gap={4}>{model.state === "ready" && <ResidentControls model={model} edit={edit} />}</Stack>
          <Group gap="xs">
            {edit && model.state === "ready" && (
              <LinkButton to="/projects/$project/recordings" params={{ project }} search={{ add: true, model: model.id }} variant="default">Record activations</LinkButton>
            )}
            {model.state === "ready" && (
              <LinkButton to="/projects/$project/lab" params={{ project }} search={{ model: model.id }} variant="default">Patch lab</LinkButton>
            )}
            {edit && <RenameButton kind="models" row={model} />}
            {edit && (
              <DeleteButton what={model.name} remove={() => deleteModel(model.id)} onDeleted={() => void invalidate("models")} />
            )}
          </Group>
        </Group>
      </Stack>
    </section>
  );
}
