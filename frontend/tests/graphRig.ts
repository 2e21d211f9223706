/** Graphs for tests. */

import type { Account, Edge, Graph, GraphNode, GraphUpdate } from "@/graphs/types";

export const node = (id: string, more: Partial<GraphNode> = {}): GraphNode => ({
  id, kind: id === "target" ? "target" : "feature", layer: 1, position: 0, site: "resid_post.1", sae: "s", index: 1, hop: 1, activation: 1, value: 1, probability: null, text: "", ...more,
});

export const edge = (from: string, to: string, attribution = 1, more: Partial<Edge> = {}): Edge => ({
  from, to, attribution, hop: 1, parts: [], side: "", carry: false, verified: null, verdict: null, measured: null, control: null, mediated: null, strengths: [], effects: [], ...more,
});

export const account = (id: string, absolute: number, more: Partial<Account> = {}): Account => ({
  node: id, value: 1, constant: 0, features: 1, errors: 0, biases: 0, modules: 0, shown: 1, absolute, absolute_errors: null, side: "", ...more,
});

export const graphOf = (nodes: GraphNode[], edges: Edge[], more: Partial<Graph> = {}): Graph => ({
  format: "microscope-graph", version: 1, model: "tiny", model_fingerprint: "f", prompt: "a b c", tokens: ["a", " b", " c"].map((text, token) => ({ token, text })),
  target: { kind: "token", position: -1, sae: "", index: null, token: 7, against: null, layer: null, head: null, key: null, vector: [] },
  n_layers: 4, saes: [], precision: "float32", runs_in: "float32", mlp: "gates", nodes, edges, components: [], completeness: 1, accounts: [],
  summary: { depth: 0, spearman: null, sign_agreement: null, measured: 0, verified: 0, error_share: null, first_seconds: null, seconds: null }, notes: [], foreign: null, ...more,
});

export const update = (more: Partial<GraphUpdate>): GraphUpdate => ({
  phase: "hop", done: 0, total: 0, nodes: [], edges: [], accounts: [], components: [], completeness: null, summary: null, notes: [], ...more,
});

/** Numbers from 0 to 1, the same every time. */
export function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 4_294_967_296;
    return state / 4_294_967_296;
  };
}

/** A graph over `layers` layers with edges from each layer to the next. */
export function bigGraph(nodes: number, edges: number, layers: number, seed = 1): Graph {
  const next = numbers(seed);
  const all = [node("target", { layer: layers, position: 30 })];
  for (let at = 0; at < nodes; at += 1) {
    const layer = at % layers;
    all.push(node(`resid_post.${layer}:${at}@${at % 31}`, { layer, position: at % 31, index: at, kind: next() < 0.1 ? "error" : "feature" }));
  }
  const byLayer = (layer: number) => (layer === layers ? [all[0]!] : all.filter((one) => one.layer === layer && one.kind !== "target"));
  const rows = Array.from({ length: layers + 1 }, (_, layer) => byLayer(layer));
  const found = new Map<string, Edge>();
  while (found.size < edges) {
    const layer = Math.floor(next() * layers);
    const from = rows[layer]![Math.floor(next() * rows[layer]!.length)]!.id;
    const above = rows[layer + 1]!;
    const to = above[Math.floor(next() * above.length)]!.id;
    found.set(`${from} ${to}`, edge(from, to, next() * 2 - 1));
  }
  const list = [...found.values()];
  const accounts = all.map((one) => account(one.id, list.filter(({ to }) => to === one.id).reduce((sum, { attribution }) => sum + Math.abs(attribution), 0) * 1.2));
  return graphOf(all, list, { accounts, n_layers: layers, tokens: Array.from({ length: 31 }, (_, token) => ({ token, text: ` t${token}` })) });
}
