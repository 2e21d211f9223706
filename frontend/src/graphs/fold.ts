/** Several nodes drawn as one: the same direction at several layers, and groups that are closed. */

import { edgeKey, type Edge, type Graph, type GraphNode } from "./types";

/** A named set of nodes. */
export interface NodeGroup {
  name: string;
  nodes: string[];
  /** Drawn as one box. */
  closed: boolean;
}

/** A node as it is drawn: one of the graph, or several that stand in one place. */
export interface DrawnNode {
  id: string;
  /** Of the graph; the topmost first. */
  members: GraphNode[];
  layer: number;
  /** The lowest layer among the members. */
  from: number;
  position: number | null;
  /** Name of the group it stands for. */
  group: string | null;
}

/** All edges from one drawn node to another. */
export interface DrawnEdge {
  key: string;
  from: string;
  to: string;
  /** The largest first. */
  edges: Edge[];
  /** Of the largest. What reaches different children has different units, so it is not summed. */
  attribution: number;
}

export interface Drawn {
  nodes: DrawnNode[];
  edges: DrawnEdge[];
  /** The drawn node of each node of the graph. */
  place: Map<string, string>;
}

export const GROUP_PREFIX = "group:";

/** Whether it is what is explained; a foreign graph may have several. */
export const isTarget = ({ members }: DrawnNode): boolean => members[0]!.kind === "target";

/** Which node stands for each chain of carries: its topmost. */
function carriers(graph: Graph): Map<string, string> {
  const parent = new Map(graph.nodes.map((node) => [node.id, node.id]));
  const layer = new Map(graph.nodes.map((node) => [node.id, node.layer]));
  const top = (id: string): string => {
    let at = id;
    while (parent.get(at) !== at) at = parent.get(at)!;
    parent.set(id, at);
    return at;
  };
  for (const edge of graph.edges) {
    // a carry that was measured and not shown stays an edge that can be seen
    if (!edge.carry || edge.verified === false || !parent.has(edge.from) || !parent.has(edge.to)) continue;
    const [a, b] = [top(edge.from), top(edge.to)];
    if (a === b) continue;
    const higher = layer.get(a)! > layer.get(b)! ? a : b;
    parent.set(higher === a ? b : a, higher);
  }
  return new Map(graph.nodes.map((node) => [node.id, top(node.id)]));
}

/** The graph as it is drawn. A node in a closed group is drawn in the group's box, and what it carries with it. */
export function folded(graph: Graph, groups: readonly NodeGroup[] = []): Drawn {
  const carrier = carriers(graph);
  const boxOf = new Map<string, string>();
  const targets = new Set(graph.nodes.filter((node) => node.kind === "target").map(({ id }) => id));
  for (const group of groups) {
    if (!group.closed) continue;
    for (const id of group.nodes) {
      const top = carrier.get(id);
      if (top !== undefined && !targets.has(top) && !boxOf.has(top)) boxOf.set(top, GROUP_PREFIX + group.name);
    }
  }
  const place = new Map<string, string>();
  const members = new Map<string, GraphNode[]>();
  for (const node of graph.nodes) {
    const top = carrier.get(node.id)!;
    const drawn = boxOf.get(top) ?? top;
    place.set(node.id, drawn);
    const list = members.get(drawn);
    if (list) list.push(node);
    else members.set(drawn, [node]);
  }
  return { nodes: [...members].map(([id, list]) => drawnNode(id, list)), edges: drawnEdges(graph, place), place };
}

function drawnNode(id: string, members: GraphNode[]): DrawnNode {
  const sorted = [...members].sort((a, b) => b.layer - a.layer);
  const group = id.startsWith(GROUP_PREFIX) ? id.slice(GROUP_PREFIX.length) : null;
  return { id, members: sorted, layer: sorted[0]!.layer, from: sorted.at(-1)!.layer, position: sorted[0]!.position, group };
}

function drawnEdges(graph: Graph, place: ReadonlyMap<string, string>): DrawnEdge[] {
  const found = new Map<string, DrawnEdge>();
  for (const edge of graph.edges) {
    const from = place.get(edge.from);
    const to = place.get(edge.to);
    if (from === undefined || to === undefined || from === to) continue;
    const key = edgeKey({ from, to, side: edge.side });
    const known = found.get(key);
    if (known) known.edges.push(edge);
    else found.set(key, { key, from, to, edges: [edge], attribution: edge.attribution });
  }
  for (const drawn of found.values()) {
    if (drawn.edges.length === 1) continue;
    drawn.edges.sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));
    drawn.attribution = drawn.edges[0]!.attribution;
  }
  return [...found.values()];
}
