/** Which edges are shown: those that are large enough, and the strongest of each node. */

import { isTarget, type DrawnEdge, type DrawnNode } from "./fold";

export interface Density {
  /** Hide edges below this share of the largest into the same node. */
  least: number;
  /** Keep the strongest so many parents of every node; 0 keeps all. */
  most: number;
}

export const EVERYTHING: Density = { least: 0, most: 0 };

/** The largest attribution of the edges into each node, as a size. */
export function largestInto(edges: readonly DrawnEdge[]): Map<string, number> {
  const largest = new Map<string, number>();
  for (const { to, attribution } of edges) largest.set(to, Math.max(largest.get(to) ?? 0, Math.abs(attribution)));
  return largest;
}

/** An attribution's size as a share of the largest into the same node. */
export const shareOf = (attribution: number, largest: number | undefined): number => (largest ? Math.abs(attribution) / largest : 0);

/**
 * The edges to draw, weakest first, so that strong ones lie on top. Attributions into different nodes have
 * different units, so each is judged against the largest into its own child.
 */
export function shownEdges(edges: readonly DrawnEdge[], { least, most }: Density): DrawnEdge[] {
  const largest = largestInto(edges);
  const sorted = [...edges].sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));
  const taken = new Map<string, number>();
  const shown = sorted.filter(({ to, attribution }) => {
    if (Math.abs(attribution) < least * (largest.get(to) ?? 0)) return false;
    const before = taken.get(to) ?? 0;
    if (most > 0 && before >= most) return false;
    taken.set(to, before + 1);
    return true;
  });
  return shown.reverse();
}

/** Nodes with an edge left, targets, and those that must stay. */
export function shownNodes(nodes: readonly DrawnNode[], edges: readonly DrawnEdge[], stay: Iterable<string>): DrawnNode[] {
  const shown = new Set<string>(stay);
  for (const { from, to } of edges) shown.add(from).add(to);
  return nodes.filter((node) => isTarget(node) || shown.has(node.id));
}
