import { MultiSelect, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { saesQuery } from "@/api/saes";
import type { Sae } from "@/api/types";
import { useProjectId } from "@/app/project";
import { Empty } from "@/components/Empty";
import { IntervalChart } from "@/charts/IntervalChart";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { ScrollX } from "@/components/ScrollX";
import { TextLink } from "@/components/TextLink";
import { comparedRows, differentText, fvuIntervals } from "@/science/comparison";

const GOAL = 0.15;

/** Evaluated SAEs side by side; which ones is in the address. */
export function Compare() {
  const project = useProjectId();
  const { saes: chosen } = useSearch({ from: "/signed-in/projects/$project/compare" });
  const navigate = useNavigate();
  const query = useQuery(saesQuery(project));
  const crumbs = [{ label: "SAEs", to: "/projects/$project/saes", params: { project } }];
  return (
    <Page title="Compare SAEs" crumbs={crumbs} lead="Newest evaluation of each, on held-out text.">
      <Loaded query={query} what="the SAEs">
        {(rows) => {
          const evaluated = rows.filter((sae) => sae.evaluation !== null);
          const wanted = chosen ?? evaluated.slice(0, 4).map((sae) => sae.id);
          const shown = wanted.flatMap((id) => evaluated.find((sae) => sae.id === id) ?? []);
          if (evaluated.length === 0) return <Empty title="Nothing to compare yet">Evaluate two SAEs first.</Empty>;
          return (
            <Stack gap="md">
              <MultiSelect
                label="SAEs"
                data={evaluated.map((sae) => ({ value: sae.id, label: sae.name }))}
                value={shown.map((sae) => sae.id)}
                onChange={(ids) => void navigate({ to: ".", search: { saes: ids } })}
                searchable
                maxValues={8}
                data-testid="compare-choice"
              />
              {shown.length > 0 && <Side saes={shown} />}
            </Stack>
          );
        }}
      </Loaded>
    </Page>
  );
}

function Side({ saes }: { saes: readonly Sae[] }) {
  const project = useProjectId();
  return (
    <Stack gap="md" className="panel">
      {differentText(saes) && <Text size="sm">These SAEs were measured on different recordings: differences may come from the text as well as from the SAEs.</Text>}
      <IntervalChart title="FVU with its 95 % interval (lower is better)" rows={fvuIntervals(saes)} goal={GOAL} />
      <ScrollX>
        <Table data-testid="comparison">
          <Table.Thead>
            <Table.Tr>
              <Table.Th>Metric</Table.Th>
              {saes.map((sae) => (
                <Table.Th key={sae.id} ta="right">
                  <TextLink to="/projects/$project/saes/$sae" params={{ project, sae: sae.id }}>{sae.name}</TextLink>
                  <Text size="xs" c="dimmed">{sae.architecture} · {sae.site}.{sae.layer}</Text>
                </Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {comparedRows(saes).map((row) => (
              <Table.Tr key={row.label}>
                <Table.Td title={row.meaning}>{row.label}</Table.Td>
                {row.cells.map((cell, place) => (
                  <Table.Td key={saes[place]?.id} ta="right" fw={cell.best ? 700 : 400}>
                    {cell.text}{cell.best && <span title="best of these"> ★<span className="visually-hidden"> best</span></span>}
                  </Table.Td>
                ))}
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </ScrollX>
    </Stack>
  );
}
