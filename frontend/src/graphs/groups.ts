/** Groups of features by their attribution profile: what they contribute to, and what contributes to them. */

import type { NodeGroup } from "./fold";
import type { Graph } from "./types";

/** Two groups are put together while their features' profiles are at least this alike on average. */
const ALIKE = 0.5;
/** The time grows with the square of the features; the strongest so many are grouped. */
const MOST = 400;

/** A sparse vector of length 1. */
type Profile = Map<string, number>;

/** Half a profile brought to a given length: the two halves are in different units, and neither may drown the other. */
function scaled(half: Profile, length: number): [string, number][] {
  const norm = Math.sqrt([...half.values()].reduce((sum, value) => sum + value * value, 0));
  return norm === 0 ? [] : [...half].map(([key, value]) => [key, (value / norm) * length]);
}

/**
 * What each feature contributes to, by the heads and MLPs it passes, and what contributes to it. Most features have one
 * child, the target: by its parts two of them can still differ.
 */
function profiles(graph: Graph): Map<string, Profile> {
  const out = new Map<string, Profile>();
  const into = new Map<string, Profile>();
  for (const { id, kind } of graph.nodes) {
    if (kind !== "feature") continue;
    out.set(id, new Map());
    into.set(id, new Map());
  }
  for (const { from, to, attribution, side, parts } of graph.edges) {
    into.get(to)?.set(`from ${from} ${side}`, attribution);
    const passed = parts.length > 0 ? parts : [{ kind: "whole", layer: null, head: null, attribution }];
    for (const part of passed) out.get(from)?.set(`to ${to} ${side} ${part.kind} ${part.layer} ${part.head}`, part.attribution);
  }
  const found = new Map<string, Profile>();
  for (const [id, contributed] of out) {
    const received = into.get(id)!;
    const length = contributed.size > 0 && received.size > 0 ? Math.SQRT1_2 : 1;
    const profile = new Map([...scaled(contributed, length), ...scaled(received, length)]);
    if (profile.size > 0) found.set(id, profile);
  }
  return found;
}

function cosine(a: Profile, b: Profile): number {
  const [small, large] = a.size <= b.size ? [a, b] : [b, a];
  let sum = 0;
  for (const [key, value] of small) sum += value * (large.get(key) ?? 0);
  return sum;
}

/** Agglomerative clustering with average linkage of the rows of a similarity matrix; equal pairs in their order. */
function clusters(likeness: number[][], least: number): number[][] {
  const members = likeness.map((_, at): number[] | null => [at]);
  const alike = likeness.map((row) => [...row]);
  for (;;) {
    let best: [number, number] | null = null;
    let most = least;
    for (let a = 0; a < members.length; a += 1) {
      if (!members[a]) continue;
      for (let b = a + 1; b < members.length; b += 1) {
        if (members[b] && alike[a]![b]! > most) [best, most] = [[a, b], alike[a]![b]!];
      }
    }
    if (!best) return members.filter((one) => one !== null);
    const [a, b] = best;
    const [sizeA, sizeB] = [members[a]!.length, members[b]!.length];
    for (let c = 0; c < members.length; c += 1) {
      if (!members[c] || c === a || c === b) continue;
      const mean = (sizeA * alike[a]![c]! + sizeB * alike[b]![c]!) / (sizeA + sizeB);
      alike[a]![c] = mean;
      alike[c]![a] = mean;
    }
    members[a] = [...members[a]!, ...members[b]!];
    members[b] = null;
  }
}

/** Groups of at least two features each; a name is the commonest word of `names` among its members. */
export function automaticGroups(graph: Graph, names: ReadonlyMap<string, string>): NodeGroup[] {
  const all = profiles(graph);
  const ids = [...all.keys()].slice(0, MOST);
  const likeness = ids.map((a) => ids.map((b) => (a === b ? 1 : cosine(all.get(a)!, all.get(b)!))));
  const groups = clusters(likeness, ALIKE).filter((members) => members.length > 1);
  return groups.map((members, place) => {
    const nodes = members.map((member) => ids[member]!);
    return { name: groupName(place + 1, nodes, names), nodes, closed: false };
  });
}

function groupName(number: number, nodes: readonly string[], names: ReadonlyMap<string, string>): string {
  const counts = new Map<string, number>();
  for (const id of nodes) {
    const name = names.get(id);
    if (name) counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const common = [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
  return common ? `${number}: ${common}` : `group ${number}`;
}
