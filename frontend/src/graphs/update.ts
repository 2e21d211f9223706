/** A graph under way, with what an update adds to it. */

import { edgeKey, type Graph, type GraphUpdate } from "./types";

/** New things at the end, known ones replaced in their place. */
function merged<Thing>(known: readonly Thing[], found: readonly Thing[], key: (thing: Thing) => string): Thing[] {
  if (found.length === 0) return known as Thing[];
  const all = new Map(known.map((thing) => [key(thing), thing]));
  for (const thing of found) all.set(key(thing), thing);
  return [...all.values()];
}

/** A graph with what an update adds or replaces; the order of first appearance is kept. */
export function updated(graph: Graph, update: GraphUpdate): Graph {
  return {
    ...graph,
    nodes: merged(graph.nodes, update.nodes, (node) => node.id),
    edges: merged(graph.edges, update.edges, edgeKey),
    accounts: merged(graph.accounts, update.accounts, (account) => `${account.node}\n${account.side}`),
    components: update.components.length > 0 ? update.components : graph.components,
    completeness: update.completeness ?? graph.completeness,
    summary: update.summary ?? graph.summary,
    notes: [...graph.notes, ...update.notes.filter((note) => !graph.notes.includes(note))],
  };
}
