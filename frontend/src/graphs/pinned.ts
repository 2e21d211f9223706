/** How much of a target a pinned subgraph explains; the formula is that of `microscope.graphs.pinned`. */

import type { Account, Edge, Graph } from "./types";

export type PinnedGraph = Pick<Graph, "nodes" | "edges" | "accounts">;

interface Step {
  node: string;
  sides: { account: Account; parents: Edge[] }[];
}

/** Nodes with accounts, every one behind all of its children, each with what contributes to it. */
function steps({ nodes, edges, accounts }: PinnedGraph): Step[] {
  const sidesOf = new Map<string, Step["sides"]>();
  const sideAt = new Map<string, Edge[]>();
  for (const account of accounts) {
    const parents: Edge[] = [];
    sideAt.set(`${account.node}\n${account.side}`, parents);
    const known = sidesOf.get(account.node);
    if (known) known.push({ account, parents });
    else sidesOf.set(account.node, [{ account, parents }]);
  }
  const waiting = new Map<string, number>();
  for (const edge of edges) {
    sideAt.get(`${edge.to}\n${edge.side}`)?.push(edge);
    if (sidesOf.has(edge.to)) waiting.set(edge.from, (waiting.get(edge.from) ?? 0) + 1);
  }
  const order: Step[] = [];
  const open = nodes.filter(({ id }) => !waiting.get(id)).map(({ id }) => id);
  while (open.length > 0) {
    const node = open.pop()!;
    const sides = sidesOf.get(node);
    if (!sides) continue;
    order.push({ node, sides });
    for (const { parents } of sides) {
      for (const { from } of parents) {
        const left = waiting.get(from)! - 1;
        waiting.set(from, left);
        if (left === 0) open.push(from);
      }
    }
  }
  return order;
}

/**
 * The share of the target that pinned nodes explain, everything unpinned counted as error; null where nothing has
 * an account. The target has influence 1. It passes down over pinned nodes, to each parent in proportion to the size
 * of its attribution among all attributions to the node; a node with several sides gives each the same part. Of every
 * node counted, the share that pinned parents other than errors have is weighed by its influence.
 */
export function pinnedCompleteness(graph: PinnedGraph, pins: Iterable<string>): number | null {
  const kind = new Map(graph.nodes.map((node) => [node.id, node.kind]));
  const pinned = new Set(pins);
  const influence = new Map<string, number>(graph.nodes.filter((node) => node.kind === "target").map(({ id }) => [id, 1]));
  let explained = 0;
  let all = 0;
  for (const { node, sides } of steps(graph)) {
    const here = influence.get(node) ?? 0;
    if (here === 0) continue;
    all += here;
    for (const { account, parents } of sides) {
      if (!(account.absolute > 0)) continue;
      for (const { from, attribution } of parents) {
        if (!pinned.has(from) || kind.get(from) === "error") continue;
        const passed = (here / sides.length) * (Math.abs(attribution) / account.absolute);
        explained += passed;
        influence.set(from, (influence.get(from) ?? 0) + passed);
      }
    }
  }
  return all > 0 ? explained / all : null;
}
