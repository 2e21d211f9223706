import { Badge, Group, Stack, Text, Title, UnstyledButton } from "@mantine/core";
import { LineChart } from "@/charts/LineChart";
import { Facts } from "@/components/Facts";
import type { DrawnEdge } from "@/graphs/fold";
import type { Edge, Graph, GraphNode } from "@/graphs/types";
import { edgeState, moduleWords, nodeWords, positionOf, tokenAt, type EdgeState } from "@/graphs/words";
import { fixed, number } from "@/science/format";
import { SignedBars } from "./SignedBars";

const FEW = 10;

const STATE: Record<EdgeState, { color: string; sign: string }> = {
  verified: { color: "ink", sign: "✓" },
  refuted: { color: "orange", sign: "✕" },
  open: { color: "gray", sign: "?" },
};

/** The verdict in a word; its sign says it without colour. */
export function VerdictBadge({ edge }: { edge: Edge }) {
  const { color, sign } = STATE[edgeState(edge)];
  return <Badge variant="light" color={color} radius="sm" size="sm" tt="none" data-testid="verdict" data-state={edgeState(edge)}>{sign} {edge.verdict ?? (edge.carry ? "carried" : "not measured")}</Badge>;
}

interface EdgePanelProps {
  graph: Graph;
  edge: DrawnEdge;
  onNode: (id: string) => void;
  /** Absent where no model can be asked. */
  onAttended?: (at: { layer: number; head: number; query: number; key: number }) => void;
}

/** What one node contributes to another: how much, through which heads and MLPs, and what removing it did. */
export function EdgePanel({ graph, edge, onNode, onAttended }: EdgePanelProps) {
  const nodes = new Map(graph.nodes.map((node) => [node.id, node]));
  return (
    <Stack gap="sm" className="panel" data-testid="edge-panel">
      <Title order={2} tabIndex={-1} id="graph-detail">Edge</Title>
      {edge.edges.map((one) => {
        const [parent, child] = [nodes.get(one.from), nodes.get(one.to)];
        return parent && child && <OneEdge key={`${one.from} ${one.to}`} graph={graph} edge={one} parent={parent} child={child} onNode={onNode} onAttended={onAttended} />;
      })}
    </Stack>
  );
}

interface OneEdgeProps extends Omit<EdgePanelProps, "edge"> {
  edge: Edge;
  parent: GraphNode;
  child: GraphNode;
}

function OneEdge({ graph, edge, parent, child, onNode, onAttended }: OneEdgeProps) {
  const parts = [...edge.parts].sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));
  const query = child.position ?? positionOf(graph, graph.target.position);
  const link = (node: GraphNode) => <UnstyledButton fz="inherit" td="underline" onClick={() => onNode(node.id)}>{nodeWords(graph, node)}</UnstyledButton>;
  return (
    <section>
      <Text size="sm">From {link(parent)} to {link(child)}{edge.side && `, by the ${edge.side}`}.</Text>
      <Group gap="xs" my={4}><VerdictBadge edge={edge} /></Group>
      <Facts
        facts={[
          { label: "Attribution", value: number(edge.attribution), title: "predicted change of the child when the parent is removed, with the sign turned" },
          { label: "Measured", value: number(edge.measured), title: "what removing the parent took from the child on the running model, nothing frozen" },
          { label: "Random features", value: edge.control === null ? "–" : `± ${number(edge.control)}`, title: "95th percentile of what matched random features did" },
          ...(edge.mediated === null ? [] : [{ label: "Mediated", value: fixed(edge.mediated, 2), title: "share of its effect on the target that went through this child" }]),
        ]}
      />
      {parts.length > 0 && (
        <>
          <Text size="xs" fw={600} mt={6}>By what it passes first</Text>
          <SignedBars
            label="Parts of the edge"
            rows={parts.slice(0, FEW).map((part, place) => {
              const { kind, layer, head } = part;
              const key = parent.position;
              const canAsk = onAttended && kind === "head" && layer !== null && head !== null && key !== null;
              return {
                key: String(place), label: moduleWords(part), value: part.attribution,
                action: canAsk ? { label: "why attended", title: `Why head ${layer}.${head} attends from ${tokenAt(graph, query)} to ${tokenAt(graph, key)}`, run: () => onAttended({ layer, head, query, key }) } : undefined,
              };
            })}
          />
          {parts.length > FEW && <Text size="xs" c="dimmed">and {parts.length - FEW} smaller ones</Text>}
        </>
      )}
      {edge.strengths.length > 1 && <LineChart title="Taken from the child" xLabel="× the parent removed" series={{ x: edge.strengths, y: edge.effects }} height={110} />}
    </section>
  );
}
