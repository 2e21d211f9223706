import { ActionIcon, Anchor, Button, Group, Select, Stack, Text, TextInput } from "@mantine/core";
import type { Corpus } from "@/api/types";
import { bytes, percent } from "@/science/format";
import { shares, weightProblem, type Part } from "./mixture";

interface TextsProps {
  corpora: readonly Corpus[];
  parts: readonly Part[];
  onChange: (parts: Part[]) => void;
  onAddCorpus: () => void;
  tried: boolean;
}

/** The corpus to record on, or several with their weights. */
export function Texts({ corpora, parts, onChange, onAddCorpus, tried }: TextsProps) {
  const several = parts.length > 1;
  const taken = new Set(parts.map((part) => part.corpus));
  const free = corpora.find((one) => !taken.has(one.id));
  const part = shares(parts);
  const change = (at: number, what: Partial<Part>) => onChange(parts.map((one, number) => (number === at ? { ...one, ...what } : one)));
  return (
    <Stack gap={6} role="group" aria-label="Texts">
      {parts.map((one, at) => (
        <Group key={one.corpus ?? "none"} gap="xs" align="flex-end" wrap="nowrap" data-testid="text-part">
          <Select
            style={{ flex: 1, minWidth: 0 }}
            label={at === 0 ? "Corpus" : undefined}
            aria-label={at === 0 ? undefined : `Corpus ${at + 1}`}
            required
            data={corpora
              .filter((corpus) => corpus.id === one.corpus || !taken.has(corpus.id))
              .map((corpus) => ({ value: corpus.id, label: corpus.bytes ? `${corpus.name} (${bytes(corpus.bytes)})` : corpus.name }))}
            value={one.corpus}
            onChange={(corpus) => corpus && change(at, { corpus })}
            placeholder={corpora.length === 0 ? "None yet" : "Choose one"}
          />
          {several && (
            <TextInput
              w={150}
              label={at === 0 ? "Weight" : undefined}
              aria-label={at === 0 ? undefined : `Weight ${at + 1}`}
              value={one.weight}
              inputMode="decimal"
              onChange={(event) => change(at, { weight: event.currentTarget.value })}
              error={tried ? weightProblem(one.weight) : null}
              rightSection={<Text size="xs" c="dimmed">{part ? percent(part[at]) : ""}</Text>}
              rightSectionWidth={64}
              rightSectionPointerEvents="none"
            />
          )}
          {several && (
            <ActionIcon variant="default" size="input-sm" aria-label={`Leave corpus ${at + 1} out`} onClick={() => onChange(parts.filter((_, number) => number !== at))}>✕</ActionIcon>
          )}
        </Group>
      ))}
      <Group gap="md">
        {free && corpora.length > 1 && (
          <Button variant="subtle" size="compact-xs" onClick={() => onChange([...parts, { corpus: free.id, weight: "1" }])} data-testid="mix-another">Mix in another corpus</Button>
        )}
        <Anchor component="button" type="button" size="xs" onClick={onAddCorpus}>Add a corpus</Anchor>
        {several && <Text size="xs" c="dimmed">Weights are shares of tokens.</Text>}
      </Group>
    </Stack>
  );
}
