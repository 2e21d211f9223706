import { Button, Text, Title } from "@mantine/core";
import { useState } from "react";
import type { Component, Graph } from "@/graphs/types";
import { moduleWords, positionOf, tokenAt } from "@/graphs/words";
import { SignedBars, type SignedRow } from "./SignedBars";

const FEW = 12;

interface ComponentsProps {
  graph: Graph;
  /** Absent where no model can be asked. */
  onAttended?: (at: { layer: number; head: number; query: number; key: number }) => void;
}

const SIDES: Record<Component["side"], string> = { "": "", query: ", by the query", key: ", by the key" };

/** The exact parts of the target: which heads, reading which tokens, and which MLPs write it. */
export function Components({ graph, onAttended }: ComponentsProps) {
  const [all, setAll] = useState(false);
  const sorted = [...graph.components].sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));
  if (sorted.length === 0) return null;
  const query = positionOf(graph, graph.target.position);
  const rows = (all ? sorted : sorted.slice(0, FEW)).map((part, place): SignedRow => {
    const { layer, head, position: key } = part;
    const canAsk = onAttended && part.kind === "head" && layer !== null && head !== null && key !== null && part.side === "";
    return {
      key: String(place),
      label: `${moduleWords(part)}${part.kind === "head" && key !== null ? ` reading ${tokenAt(graph, key)}` : ""}${SIDES[part.side]}`,
      value: part.attribution,
      action: canAsk ? { label: "why attended", title: "Why this head attends to that token", run: () => onAttended({ layer, head, query, key }) } : undefined,
    };
  });
  return (
    <section className="panel" data-testid="graph-components">
      <Title order={3}>Exact parts of the target</Title>
      <Text size="xs" c="dimmed">What the embedding, every head by the token it reads, and every MLP add to it, patterns and norms frozen.</Text>
      <SignedBars rows={rows} label="Exact parts of the target, the largest first" />
      {sorted.length > FEW && <Button variant="subtle" size="compact-sm" mt={4} onClick={() => setAll(!all)}>{all ? "Only the largest" : `All ${sorted.length}`}</Button>}
    </section>
  );
}
