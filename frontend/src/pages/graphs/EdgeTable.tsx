import { useState } from "react";
import { Button, Text, UnstyledButton } from "@mantine/core";
import { ScrollX } from "@/components/ScrollX";
import type { DrawnEdge } from "@/graphs/fold";
import type { Edge } from "@/graphs/types";
import { moduleWords } from "@/graphs/words";
import { number } from "@/science/format";
import { VerdictBadge } from "./EdgePanel";
import styles from "./Graphs.module.css";

interface EdgeTableProps {
  label: string;
  /** The strongest first. */
  edges: readonly DrawnEdge[];
  /** Which ends are named. */
  ends: "from" | "to" | "both";
  /** What a node is, and where. */
  nameOf: (id: string) => [what: string, where: string];
  onNode: (id: string) => void;
  onEdge: (edge: DrawnEdge) => void;
  rows?: number;
}

/** The largest part of an edge, in a word. */
function through(edge: Edge): string {
  const [first] = [...edge.parts].sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));
  return edge.carry ? "carried" : first ? moduleWords(first) : "–";
}

/** Edges as a table: the same as the picture, in words. */
export function EdgeTable({ label, edges, ends, nameOf, onNode, onEdge, rows = 12 }: EdgeTableProps) {
  const [shown, setShown] = useState(rows);
  const end = (id: string) => {
    const [what, where] = nameOf(id);
    return (
      <td>
        <UnstyledButton fz="inherit" onClick={() => onNode(id)}>
          <span style={{ textDecoration: "underline" }}>{what}</span> <Text component="span" size="xs" c="dimmed">{where}</Text>
        </UnstyledButton>
      </td>
    );
  };
  return (
    <ScrollX>
      <table className={styles.edges} aria-label={label} data-testid="edge-table">
        <thead>
          <tr>
            {ends !== "to" && <th scope="col">from</th>}
            {ends !== "from" && <th scope="col">to</th>}
            <th scope="col">attribution</th>
            <th scope="col">measured</th>
            <th scope="col">verdict</th>
            <th scope="col">through</th>
          </tr>
        </thead>
        <tbody>
          {edges.slice(0, shown).map((edge) => {
            const first = edge.edges[0]!;
            return (
              <tr key={edge.key} data-testid="edge-row">
                {ends !== "to" && end(edge.from)}
                {ends !== "from" && end(edge.to)}
                <td className={styles.number}>{number(edge.attribution)}{edge.edges.length > 1 && ` +${edge.edges.length - 1}`}</td>
                <td className={styles.number}>{number(first.measured)}</td>
                <td><VerdictBadge edge={first} /></td>
                <td><UnstyledButton fz="inherit" onClick={() => onEdge(edge)} style={{ textDecoration: "underline" }} title="Parts, measurements, why attended">{through(first)}</UnstyledButton></td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {edges.length > shown && <Button size="compact-sm" variant="subtle" onClick={() => setShown(shown + 100)}>{edges.length - shown} more</Button>}
    </ScrollX>
  );
}
