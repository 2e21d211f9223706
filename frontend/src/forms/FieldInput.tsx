import { MultiSelect, Select, Switch, TextInput } from "@mantine/core";
import type { FieldSpec } from "@/api/types";
import { fieldLabel, parseNumber, splitList, type Entry } from "./fields";
import { integer } from "@/science/format";

interface FieldInputProps {
  spec: FieldSpec;
  entry: Entry;
  onChange: (entry: Entry) => void;
  problem: string | null;
}

/** One parameter: a switch, a choice, or text that is read as a number where one is wanted. */
export function FieldInput({ spec, entry, onChange, problem }: FieldInputProps) {
  const label = fieldLabel(spec.name);
  if (spec.type === "boolean") {
    return (
      <Switch label={label} description={spec.description} checked={entry === true} onChange={(event) => onChange(event.currentTarget.checked)} name={spec.name} />
    );
  }
  const text = typeof entry === "string" ? entry : "";
  if (spec.choices.length > 0 && spec.many) {
    return (
      <MultiSelect
        label={label}
        description={spec.description}
        data={spec.choices}
        value={splitList(text)}
        onChange={(values) => onChange(values.join(", "))}
        error={problem}
        name={spec.name}
      />
    );
  }
  if (spec.choices.length > 0) {
    return (
      <Select
        label={label}
        description={spec.description}
        data={spec.choices}
        value={text || null}
        onChange={(value) => onChange(value ?? "")}
        clearable={spec.optional}
        error={problem}
        name={spec.name}
      />
    );
  }
  const numeric = spec.type === "integer" || spec.type === "number";
  return (
    <TextInput
      label={label}
      description={spec.description}
      value={text}
      onChange={(event) => onChange(event.currentTarget.value)}
      error={problem}
      required={spec.required}
      name={spec.name}
      placeholder={spec.optional ? "automatic" : undefined}
      inputMode={numeric && !spec.many ? "decimal" : undefined}
      rightSection={spec.unit ? <Reading text={text} unit={spec.unit} numeric={numeric && !spec.many} /> : undefined}
      rightSectionWidth={spec.unit ? 92 : undefined}
      rightSectionPointerEvents="none"
    />
  );
}

/** How a short form such as 2M or 16k is read, and the unit. */
function Reading({ text, unit, numeric }: { text: string; unit: string; numeric: boolean }) {
  const value = numeric ? parseNumber(text, unit) : null;
  const short = value !== null && /[kmg]$/i.test(text.trim());
  return (
    <span style={{ fontSize: "0.75rem", color: "var(--mantine-color-dimmed)", whiteSpace: "nowrap" }}>
      {short ? `= ${integer(value)}` : unit}
    </span>
  );
}
