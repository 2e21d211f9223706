/** How much of a target a pinned subgraph explains; the formula is that of `microscope.graphs.pinned`. */

import type { Account, Edge, GraphNode } from "./types";

/** The fields that count. */
export interface PinnedGraph {
  nodes: readonly Pick<GraphNode, "id" | "kind" | "probability">[];
  edges: readonly Pick<Edge, "from" | "to" | "side" | "attribution">[];
  accounts: readonly Pick<Account, "node" | "side" | "absolute">[];
}

interface Step {
  node: string;
  sides: { account: PinnedGraph["accounts"][number]; parents: PinnedGraph["edges"][number][] }[];
}

/** Nodes with accounts, every one behind all of its children, each with what contributes to it. */
function steps({ nodes, edges, accounts }: PinnedGraph): Step[] {
  const sidesOf = new Map<string, Step["sides"]>();
  const sideAt = new Map<string, Step["sides"][number]["parents"]>();
  for (const account of accounts) {
    const parents: Step["sides"][number]["parents"] = [];
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

/** The influence that targets start with: all of it, or shared out by probability where there are several. */
function targetInfluence(nodes: PinnedGraph["nodes"]): Map<string, number> {
  const targets = nodes.filter(({ kind }) => kind === "target");
  const all = targets.reduce((sum, { probability }) => sum + (probability ?? 0), 0);
  const known = all > 0 && targets.every(({ probability }) => probability !== null);
  return new Map(targets.map(({ id, probability }) => [id, known ? probability! / all : 1 / targets.length]));
}

/**
 * The share of the target that pinned nodes explain, everything unpinned counted as error; null where nothing has
 * an account. Targets are always pinned. Influence passes down from the target, 1, over pinned nodes, to each parent
 * in proportion to the size of its attribution among all attributions to the node; a node with several sides gives
 * each the same part. Of every node counted, the share that pinned parents other than errors have is weighed by its
 * influence.
 */
export function pinnedCompleteness(graph: PinnedGraph, pins: Iterable<string>): number | null {
  const kind = new Map(graph.nodes.map((node) => [node.id, node.kind]));
  const pinned = new Set(pins);
  for (const { id, kind: what } of graph.nodes) if (what === "target") pinned.add(id);
  const influence = targetInfluence(graph.nodes);
  let explained = 0;
  let all = 0;
  for (const { node, sides } of steps(graph)) {
    const here = influence.get(node) ?? 0;
    const wholes = sides.map(({ account, parents }) =>
      // an account that is smaller than its edges would explain more than there is
      Math.max(account.absolute, parents.reduce((sum, { attribution }) => sum + Math.abs(attribution), 0)),
    );
    const counted = wholes.filter((whole) => whole > 0).length;
    if (here === 0 || counted === 0) continue;
    all += here;
    sides.forEach(({ parents }, side) => {
      for (const { from, attribution } of parents) {
        if (!pinned.has(from) || kind.get(from) === "error" || attribution === 0) continue;
        const passed = (here / counted) * (Math.abs(attribution) / wholes[side]!);
        explained += passed;
        influence.set(from, (influence.get(from) ?? 0) + passed);
      }
    });
  }
  return all > 0 ? explained / all : null;
}
