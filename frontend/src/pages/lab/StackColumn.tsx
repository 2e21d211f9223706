import { ActionIcon, Group, Text } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { featureAtQuery, featureQuery, percentileOf } from "@/api/features";
import type { EditKind } from "@/api/types";
import type { LiveState } from "@/live/liveSession";
import { useEditKinds } from "@/patches/kinds";
import { withKind, type EditCard } from "@/patches/plan";
import { EditCardView } from "./EditCardView";
import styles from "./Lab.module.css";
import type { CardName } from "./useNames";
import type { Stack } from "./useStack";

interface StackColumnProps {
  stack: Stack;
  live: LiveState;
  nameOf: (card: EditCard) => CardName;
  header: ReactNode;
  picker: ReactNode;
}

/** How strongly a card's feature fires on the prompt; null while that is unknown. */
function firingOf(card: EditCard, live: LiveState): number | null {
  const values = live.activations[card.feature.sae]?.[card.feature.index];
  return values ? Math.max(0, ...values) : null;
}

/** The ordered edits, with undo and redo. */
export function StackColumn({ stack, live, nameOf, header, picker }: StackColumnProps) {
  const queries = useQueryClient();
  const kinds = useEditKinds().filter((kind) => kind.refers_to === "feature");
  const setKind = async (card: EditCard, kind: EditKind) => {
    let p999 = card.feature.p999;
    if (kind.counts && p999 === null && card.feature.saeId !== "") {
      const row = await queries.query(featureAtQuery(card.feature.saeId, card.feature.index));
      if (row) p999 = percentileOf(await queries.query(featureQuery(row.id)));
    }
    stack.update(withKind(card, kind, p999));
  };

  return (
    <section className={styles.column} aria-label="Stack of edits">
      {header}
      <Group justify="space-between">
        <Text fw={600} size="sm">{stack.cards.length === 0 ? "No edits yet" : `${stack.cards.length} ${stack.cards.length === 1 ? "edit" : "edits"}`}</Text>
        <Group gap={4}>
          <ActionIcon size="sm" variant="default" onClick={stack.undo} disabled={!stack.canUndo} aria-label="Undo" title="Undo (z)" data-testid="undo"><span aria-hidden="true">↶</span></ActionIcon>
          <ActionIcon size="sm" variant="default" onClick={stack.redo} disabled={!stack.canRedo} aria-label="Redo" title="Redo (shift z)" data-testid="redo"><span aria-hidden="true">↷</span></ActionIcon>
        </Group>
      </Group>
      <ol className={styles.cards}>
        {stack.cards.map((card) => (
          <EditCardView
            key={card.id}
            card={card}
            kinds={kinds}
            {...nameOf(card)}
            selected={stack.selected?.id === card.id}
            firing={firingOf(card, live)}
            onSelect={() => stack.select(card.id)}
            onChange={stack.update}
            onKind={(kind) => void setKind(card, kind)}
            onSettle={stack.settle}
            onSolo={() => stack.solo(card.id)}
            onRemove={() => stack.remove(card.id)}
            onMove={(by) => stack.move(card.id, by)}
          />
        ))}
      </ol>
      {picker}
    </section>
  );
}
