import { Group, Table, Text, Title } from "@mantine/core";
import type { Feature, FeatureDetail } from "@/api/types";
import { useProjectId } from "@/app/project";
import { TextLink } from "@/components/TextLink";
import { fixed, number, percent } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./FeaturePage.module.css";

interface Row {
  index: number;
  value: string;
}

/** Features that point the same way or fire on the same tokens. */
export function RelatedFeatures({ detail }: { detail: FeatureDetail }) {
  const { details } = detail;
  const features = new Map(detail.related.map((feature) => [feature.index, feature]));
  const cosines = (rows: readonly { index: number; cosine: number }[]): Row[] =>
    rows.map((row) => ({ index: row.index, value: fixed(row.cosine, 3) }));
  const lists: [title: string, meaning: string, rows: Row[]][] = [
    ["Write alike", "largest cosine between decoder directions: what the features add", cosines(details.decoder_neighbours)],
    ["Read alike", "largest cosine between encoder directions: what the features look for", cosines(details.encoder_neighbours)],
    [
      "Fire together",
      "share of this feature’s firings on whose token the other fires too, and how much more often than by chance",
      details.partners.map((row) => ({ index: row.index, value: `${percent(row.share)} · ${number(row.lift)}×` })),
    ],
  ];
  if (lists.every(([, , rows]) => rows.length === 0)) return null;
  return (
    <div className={styles.trio} data-testid="related">
      {lists.map(([title, meaning, rows]) => (
        <div className="panel" key={title}>
          <Title order={3} title={meaning}>{title}</Title>
          {rows.length === 0 ? <Text size="xs" c="dimmed">none</Text> : <RelatedList title={title} rows={rows} features={features} />}
        </div>
      ))}
    </div>
  );
}

function RelatedList({ title, rows, features }: { title: string; rows: Row[]; features: Map<number, Feature> }) {
  const project = useProjectId();
  return (
    <Table withRowBorders={false} verticalSpacing={2} aria-label={title}>
      <Table.Tbody>
        {rows.map(({ index, value }) => {
          const feature = features.get(index);
          return (
            <Table.Tr key={index}>
              <Table.Td pl={0}>
                {feature ? <TextLink to="/projects/$project/features/$feature" params={{ project, feature: feature.id }}>{index}</TextLink> : index}
              </Table.Td>
              <Table.Td>
                <Group gap={4} wrap="nowrap">
                  <Text size="xs" lineClamp={1}>{feature && (feature.label === "" ? feature.top_tokens.slice(0, 3).map(tokenLabel).join(" ") : feature.label)}</Text>
                </Group>
              </Table.Td>
              <Table.Td ta="right" pr={0} style={{ whiteSpace: "nowrap" }}>{value}</Table.Td>
            </Table.Tr>
          );
        })}
      </Table.Tbody>
    </Table>
  );
}
