import { Accordion, SimpleGrid, Stack } from "@mantine/core";
import type { FieldSpec } from "@/api/types";
import { FieldInput } from "./FieldInput";
import { entryProblem, type Entries } from "./fields";

interface ParamsFormProps {
  specs: readonly FieldSpec[];
  entries: Entries;
  onChange: (entries: Entries) => void;
  /** Problems are shown once somebody tried to send the form, not while they are still typing. */
  tried: boolean;
}

/** Inputs for a job's parameters; the rarely needed ones are folded away. */
export function ParamsForm({ specs, entries, onChange, tried }: ParamsFormProps) {
  const advanced = specs.filter((spec) => spec.advanced);
  const input = (spec: FieldSpec) => (
    <FieldInput
      key={spec.name}
      spec={spec}
      entry={entries[spec.name] ?? ""}
      onChange={(entry) => onChange({ ...entries, [spec.name]: entry })}
      problem={tried ? entryProblem(spec, entries[spec.name]) : null}
    />
  );
  const hidden = tried && advanced.some((spec) => entryProblem(spec, entries[spec.name]));
  return (
    <Stack gap="sm">
      <SimpleGrid cols={{ base: 1, xs: 2, md: 3 }} spacing="sm" className="fields">
        {specs.filter((spec) => !spec.advanced).map(input)}
      </SimpleGrid>
      {advanced.length > 0 && (
        <Accordion variant="contained" {...(hidden ? { value: "advanced" } : {})}>
          <Accordion.Item value="advanced">
            <Accordion.Control>More settings ({advanced.length})</Accordion.Control>
            <Accordion.Panel>
              <SimpleGrid cols={{ base: 1, xs: 2, md: 3 }} spacing="sm" className="fields">{advanced.map(input)}</SimpleGrid>
            </Accordion.Panel>
          </Accordion.Item>
        </Accordion>
      )}
    </Stack>
  );
}
