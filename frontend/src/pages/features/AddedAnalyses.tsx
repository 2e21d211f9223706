import { Table, Text, Title } from "@mantine/core";
import type { FeatureDetail } from "@/api/types";
import { integer, number } from "@/science/format";

type Value = boolean | number | string | null;

/** A value of an analysis as text; whole numbers in full. */
export function shownValue(value: Value | undefined): string {
  if (value === undefined || value === null) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? integer(value) : number(value);
  return typeof value === "boolean" ? (value ? "yes" : "no") : value;
}

/** What analyses of other packages found: a titled value or table each. */
export function AddedAnalyses({ detail }: { detail: FeatureDetail }) {
  return detail.analyses.map(({ name, title, description, columns, error, package: owner }) => {
    const found = detail.details.more[name];
    return (
      <div className="panel" key={name} data-testid={`analysis-${name}`}>
        <Title order={3} title={`${description} (${owner})`}>{title}</Title>
        {error !== "" && <Text size="xs" c="dimmed">{error}</Text>}
        {error === "" && (Array.isArray(found) ? <Rows title={title} columns={columns} rows={found} /> : <Text>{shownValue(found)}</Text>)}
      </div>
    );
  });
}

function Rows({ title, columns, rows }: { title: string; columns: readonly string[]; rows: readonly (readonly Value[])[] }) {
  if (rows.length === 0) return <Text size="xs" c="dimmed">none</Text>;
  return (
    <Table withRowBorders={false} verticalSpacing={2} aria-label={title}>
      <Table.Thead><Table.Tr>{columns.map((column) => <Table.Th key={column}>{column}</Table.Th>)}</Table.Tr></Table.Thead>
      <Table.Tbody>
        {rows.map((row, place) => (
          <Table.Tr key={place}>{row.map((value, column) => <Table.Td key={column}>{shownValue(value)}</Table.Td>)}</Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}
