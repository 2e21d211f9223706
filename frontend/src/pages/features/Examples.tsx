import { Stack, Text, Title } from "@mantine/core";
import { memo } from "react";
import type { FeatureDetails } from "@/api/types";
import { HeatLegend, TokenHeat } from "@/charts/TokenHeat";
import { number } from "@/science/format";
import { exampleGroups, type ExampleGroup } from "@/science/examples";
import styles from "./FeaturePage.module.css";

interface ExamplesProps {
  details: FeatureDetails;
  index: number;
  onHover: (value: number | null) => void;
}

/** The strongest examples, then a sample of weaker ones by quantile. Not drawn again while the pointer moves. */
export const Examples = memo(function Examples({ details, index, onHover }: ExamplesProps) {
  const groups = exampleGroups(details);
  return (
    <Stack gap="xs" className="panel">
      <Title order={3}>Examples</Title>
      <HeatLegend scale={details.max_activation} />
      {groups.map((group) => (
        <section key={group.group} data-testid="example-group" data-group={group.group}>
          <Title order={4} size="sm">{group.title}</Title>
          {group.note && <Text size="xs" c="dimmed">{group.note}</Text>}
          <List group={group} scale={details.max_activation} index={index} onHover={onHover} />
        </section>
      ))}
    </Stack>
  );
});

interface ListProps {
  group: ExampleGroup;
  scale: number;
  index: number;
  onHover: (value: number | null) => void;
}

function List({ group, scale, index, onHover }: ListProps) {
  return (
    <ol className={styles.examples}>
      {group.examples.map((example, place) => (
        <li key={`${example.doc}-${example.pos}-${place}`} className={styles.example} data-testid="example">
          <span className={styles.max}>
            {number(example.max)}
            <span className={styles.source} title={`document ${example.doc}, from token ${example.pos}`}>doc {example.doc}</span>
          </span>
          <TokenHeat
            tokens={example.texts.map((text, position) => ({ text, value: example.values[position] ?? 0 }))}
            scale={scale}
            label={`${group.title}, example ${place + 1} of feature ${index}`}
            peak={example.peak}
            onHover={onHover}
            testId="example-token"
          />
        </li>
      ))}
    </ol>
  );
}
