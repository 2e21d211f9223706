/** What leads to a node, and what it leads to. */

import type { DrawnEdge } from "./fold";

export interface Reach {
  ancestors: Set<string>;
  descendants: Set<string>;
}

function walk(start: string, next: ReadonlyMap<string, string[]>): Set<string> {
  const seen = new Set<string>();
  const open = [start];
  while (open.length > 0) {
    for (const id of next.get(open.pop()!) ?? []) {
      if (seen.has(id) || id === start) continue;
      seen.add(id);
      open.push(id);
    }
  }
  return seen;
}

/** Parents and children of every node, for {@link reachOf} to walk many times. */
export class Links {
  private readonly parents = new Map<string, string[]>();
  private readonly children = new Map<string, string[]>();

  constructor(edges: readonly DrawnEdge[]) {
    for (const { from, to } of edges) {
      append(this.parents, to, from);
      append(this.children, from, to);
    }
  }

  /** Everything upstream and downstream of a node, itself left out. */
  reachOf(id: string): Reach {
    return { ancestors: walk(id, this.parents), descendants: walk(id, this.children) };
  }
}

function append(lists: Map<string, string[]>, key: string, value: string): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}

/** Whether an edge lies on a path through the node. */
export function onPath(edge: DrawnEdge, id: string, { ancestors, descendants }: Reach): boolean {
  const below = (end: string) => end === id || ancestors.has(end);
  const above = (end: string) => end === id || descendants.has(end);
  return (below(edge.from) && below(edge.to)) || (above(edge.from) && above(edge.to));
}
