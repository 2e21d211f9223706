/** A provenance graph that a resident model computes, as it fills in. */

import type { Graph, GraphTarget, GraphUpdate } from "@/graphs/types";
import { updated } from "@/graphs/update";

/** What is asked for. */
export interface GraphQuestion {
  target: GraphTarget;
  /** Fingerprints of the SAEs whose latents are nodes. */
  saes: string[];
  hops: number;
  parents: number;
  shown: number;
  verify: boolean;
}

export interface LiveGraph {
  run: number;
  question: GraphQuestion;
  graph: Graph | null;
  phase: GraphUpdate["phase"] | null;
  /** Steps of the phase. */
  done: number;
  total: number;
  /** Why it is over; null while it goes on. */
  ended: string | null;
}

/** A graph of which nothing is known yet. */
export function startedGraph(run: number, question: GraphQuestion): LiveGraph {
  return { run, question, graph: null, phase: null, done: 0, total: 0, ended: null };
}

/** The graph with what an update adds to it. */
export function grown(live: LiveGraph, update: GraphUpdate): LiveGraph {
  const graph = live.graph && updated(live.graph, update);
  return { ...live, graph, phase: update.phase, done: update.done, total: update.total };
}

/** Whether a question has been answered to the end: a connection that comes back need not ask it again. */
export const answeredWhole = (live: LiveGraph | null, question: GraphQuestion): boolean =>
  live?.ended === "done" && JSON.stringify(live.question) === JSON.stringify(question);

/** The graph as it is kept: one that was ended early says so. */
export function keptGraph({ graph, ended }: LiveGraph): Graph | null {
  if (!graph || ended === "done") return graph;
  return { ...graph, notes: [...graph.notes, "It was ended before it was complete: edges may be missing or not measured."] };
}

const PHASES: Record<GraphUpdate["phase"], string> = {
  components: "splitting the target into its exact parts",
  hop: "looking further back",
  verify: "measuring edges on the running model",
  done: "done",
};

const REASONS: Record<string, string> = {
  done: "complete",
  stopped: "stopped; what is shown stays true",
  replaced: "replaced by a newer one",
  failed: "the model could not go on; what is shown stays true",
  lost: "the model was lost; what is shown stays true",
};

/** Where a graph stands, in words. */
export function graphProgress(live: LiveGraph): string {
  if (live.ended !== null) return REASONS[live.ended] ?? live.ended;
  if (live.phase === null) return live.graph ? "first picture" : "computing the first picture";
  const steps = live.total > 0 ? ` (${live.done} of ${live.total})` : "";
  return `${PHASES[live.phase]}${steps}`;
}
