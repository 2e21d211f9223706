import { Progress, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { myUsageQuery, usageQuery } from "@/api/account";
import type { OwnUsage } from "@/api/types";
import { Loaded } from "@/components/Loaded";
import { ScrollX } from "@/components/ScrollX";
import { bytes, duration, integer } from "@/science/format";

function amount(value: number, unit: string): string {
  if (unit === "bytes") return bytes(value);
  return unit === "seconds" ? duration(value) : integer(value);
}

/** What the project uses of its limits, and the reader of theirs: of all resources, or of some. */
export function UsagePanel({ project, resources }: { project: string; resources?: readonly string[] }) {
  const usage = useQuery(usageQuery(project));
  return (
    <section className="panel" aria-labelledby="usage" data-testid="usage">
      <h2 id="usage">Use and limits</h2>
      <Loaded query={usage} what="what is used">
        {(rows) => (
          <ScrollX>
            <Table>
              <Table.Thead>
                <Table.Tr><Table.Th><span className="visually-hidden">Resource</span></Table.Th><Table.Th>This project</Table.Th><Table.Th>You, in all projects</Table.Th></Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {rows.filter((row) => resources?.includes(row.resource) ?? true).map((row) => (
                  <Table.Tr key={row.resource} data-testid="usage-row" data-resource={row.resource}>
                    <Table.Td>{row.title}</Table.Td>
                    <Table.Td><Share used={row.used} limit={row.limit} row={row} whose="the project" /></Table.Td>
                    <Table.Td><Share used={row.own_used} limit={row.own_limit} row={row} whose="you" /></Table.Td>
                  </Table.Tr>
                ))}
              </Table.Tbody>
            </Table>
          </ScrollX>
        )}
      </Loaded>
    </section>
  );
}

/** What the reader uses of their own limits, over all projects. */
export function MyUsagePanel() {
  const usage = useQuery(myUsageQuery);
  return (
    <section className="panel" aria-labelledby="my-usage" data-testid="my-usage">
      <h2 id="my-usage">Use and limits</h2>
      <Text size="sm" mb="xs">What you use in all projects together. Staff can raise a limit.</Text>
      <Loaded query={usage} what="what you use">
        {(rows) => (
          <Table>
            <Table.Tbody>
              {rows.map((row) => (
                <Table.Tr key={row.resource} data-testid="usage-row" data-resource={row.resource}>
                  <Table.Th scope="row" fw="normal">{row.title}</Table.Th>
                  <Table.Td><Share used={row.used} limit={row.limit} row={row} whose="you" /></Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </Loaded>
    </section>
  );
}

function Share({ used, limit, row, whose }: { used: number; limit: number; row: OwnUsage; whose: string }) {
  const share = limit > 0 ? Math.min(100, (100 * used) / limit) : 0;
  return (
    <>
      <Text size="sm">{amount(used, row.unit)}{limit > 0 ? ` of ${amount(limit, row.unit)}` : ", no limit"}</Text>
      {limit > 0 && <Progress value={share} size="xs" color={share >= 90 ? "orange" : undefined} aria-label={`${row.title}, ${whose}: ${Math.round(share)} % of the limit`} />}
    </>
  );
}
