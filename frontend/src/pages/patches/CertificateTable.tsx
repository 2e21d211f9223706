import { Badge, Table, Text } from "@mantine/core";
import type { Certificate, Measured } from "@/api/types";
import { ScrollX } from "@/components/ScrollX";
import { gateLimit, shareSentence } from "@/patches/exports";
import { number, percent } from "@/science/format";

/** The share of the effect an export keeps, then its gates with their numbers. */
export function CertificateTable({ certificate }: { certificate: Certificate }) {
  const measured = certificate.measured as Measured;
  const { clean, trigger, effect, collateral } = measured;
  return (
    <ScrollX>
      <Text size="sm" fw={600} data-testid="share">{shareSentence(certificate)}</Text>
      {measured.notes?.map((note) => <Text key={note} size="xs">{note}</Text>)}
      <Table fz="xs" data-testid="gates">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Gate</Table.Th><Table.Th ta="right">Value</Table.Th><Table.Th ta="right">Limit</Table.Th><Table.Th>Verdict</Table.Th><Table.Th>Formula</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {certificate.gates.map((gate) => (
            <Table.Tr key={gate.name} data-passed={gate.passed}>
              <Table.Td fw={600}>{gate.name}</Table.Td>
              <Table.Td ta="right">
                {gate.value === null ? "–" : gate.value.toPrecision(3)}
                {gate.interval && <Text size="xs" c="dimmed" style={{ whiteSpace: "nowrap" }}>{gate.interval.map((end) => end.toPrecision(3)).join(" to ")}</Text>}
              </Table.Td>
              <Table.Td ta="right" style={{ whiteSpace: "nowrap" }}>{gateLimit(gate)}</Table.Td>
              <Table.Td>
                <Badge color={gate.passed ? "ink" : gate.passed === null ? "gray" : "orange"} variant="light" radius="sm" tt="none" miw="max-content">
                  {gate.passed ? "✓ within" : gate.passed === null ? "– not measured" : "✕ outside"}
                </Badge>
              </Table.Td>
              <Table.Td><Text size="xs" miw={200}>{gate.formula}</Text></Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      <Text size="xs" c="dimmed">
        {clean && `${clean.positions} held-out positions, the same top token on ${percent(clean.top1_agreement)}. `}
        {trigger && `Where the patch acts: ${trigger.positions} positions in ${trigger.contexts} contexts. `}
        {effect?.features.map((one) => `Feature ${one.feature}: ${number(one.base)} in the base, ${number(one.patched)} patched, ${number(one.export)} exported. `)}
        {collateral && `Perplexity changes by ${percent(collateral.perplexity_change.value)}.`}
      </Text>
    </ScrollX>
  );
}
