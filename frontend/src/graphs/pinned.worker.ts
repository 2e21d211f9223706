/** Computes the completeness of pinned subgraphs apart from the page, so that it never waits for them. */

import { pinnedCompleteness, type PinnedGraph } from "./pinned";

export type PinnedRequest = { graph: PinnedGraph } | { ask: number; pins: string[] };
export interface PinnedAnswer {
  ask: number;
  completeness: number | null;
}

let graph: PinnedGraph | null = null;

self.onmessage = ({ data }: MessageEvent<PinnedRequest>) => {
  if ("graph" in data) graph = data.graph;
  else self.postMessage({ ask: data.ask, completeness: graph && pinnedCompleteness(graph, data.pins) } satisfies PinnedAnswer);
};
