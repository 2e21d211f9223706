import { Checkbox, Group, NumberInput, Select, TextInput } from "@mantine/core";
import { useState } from "react";
import type { Positions } from "@/patches/plan";
import { positionsOf, positionWords } from "@/patches/positions";

interface PositionsControlProps {
  positions: Positions;
  /** What the edit acts through, for the names of the controls. */
  what: string;
  onChange: (positions: Positions) => void;
}

const MODES: { value: Positions["mode"]; label: string }[] = [
  { value: "all", label: "every token" },
  { value: "from", label: "from a token on" },
  { value: "set", label: "chosen tokens" },
  { value: "generated", label: "only what is generated" },
];

/** Where in the sequence an edit acts; folded away, since every token is what is meant mostly. */
export function PositionsControl({ positions, what, onChange }: PositionsControlProps) {
  return (
    <details data-testid="positions">
      <summary style={{ fontSize: "0.75rem" }}>{positionWords(positions)}</summary>
      <Group gap={6} mt={4} align="center">
        <Select
          size="xs"
          w={150}
          data={MODES}
          value={positions.mode}
          allowDeselect={false}
          onChange={(mode) => mode && onChange({ ...positions, mode })}
          aria-label={`Where to edit: ${what}`}
        />
        {positions.mode === "from" && (
          <NumberInput size="xs" w={80} min={0} allowDecimal={false} value={positions.start} onChange={(value) => typeof value === "number" && onChange({ ...positions, start: value })} aria-label={`First token to edit: ${what}`} />
        )}
        {positions.mode === "set" && <Chosen positions={positions} what={what} onChange={onChange} />}
        <Checkbox
          size="xs"
          label="special tokens and sinks too"
          title="Weights spare no token: exports that change weights are exact only with this"
          checked={positions.include_sinks}
          onChange={(event) => onChange({ ...positions, include_sinks: event.currentTarget.checked })}
          data-testid="include-sinks"
        />
      </Group>
    </details>
  );
}

/** Positions as numbers and ranges; taken once they can be read. */
function Chosen({ positions, what, onChange }: PositionsControlProps) {
  const [text, setText] = useState(positions.indices.join(", "));
  const read = positionsOf(text);
  return (
    <TextInput
      size="xs"
      w={130}
      placeholder="0, 4-7"
      value={text}
      error={read === null ? "numbers and ranges" : undefined}
      onChange={(event) => {
        setText(event.currentTarget.value);
        const next = positionsOf(event.currentTarget.value);
        if (next) onChange({ ...positions, indices: next });
      }}
      aria-label={`Tokens to edit, counted from 0: ${what}`}
    />
  );
}
