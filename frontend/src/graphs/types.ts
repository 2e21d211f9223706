/** The document of a provenance graph, as `microscope.graphs` declares it. */

export type NodeKind = "target" | "feature" | "error" | "bias" | "embedding" | "mlp" | "head" | "block";
export type Verdict = "causal" | "weak" | "not shown";
export type Side = "" | "query" | "key";

export interface GraphToken {
  token: number;
  text: string;
}

export interface GraphSae {
  fingerprint: string;
  name: string;
  site: string;
  site_out: string;
  n_latents: number;
}

export interface GraphTarget {
  kind: "feature" | "token" | "difference" | "attention" | "direction";
  position: number;
  sae: string;
  index: number | null;
  token: number | null;
  against: number | null;
  layer: number | null;
  head: number | null;
  key: number | null;
  vector: number[];
}

export interface GraphNode {
  id: string;
  kind: NodeKind;
  layer: number;
  position: number | null;
  site: string;
  sae: string;
  index: number | null;
  hop: number;
  activation: number | null;
  value: number | null;
  text: string;
}

export interface Part {
  kind: "direct" | "head" | "mlp" | "block";
  attribution: number;
  layer: number | null;
  head: number | null;
}

export interface Edge {
  from: string;
  to: string;
  attribution: number;
  hop: number;
  parts: Part[];
  side: Side;
  carry: boolean;
  verified: boolean | null;
  verdict: Verdict | null;
  measured: number | null;
  control: number | null;
  mediated: number | null;
  strengths: number[];
  effects: number[];
}

export interface Component {
  kind: "embedding" | "head" | "attention" | "mlp" | "block" | "bias";
  attribution: number;
  layer: number | null;
  head: number | null;
  position: number | null;
  side: Side;
}

export interface Account {
  node: string;
  value: number;
  constant: number;
  features: number;
  errors: number;
  biases: number;
  modules: number;
  shown: number;
  absolute: number;
  side: Side;
}

export interface Summary {
  depth: number;
  spearman: number | null;
  sign_agreement: number | null;
  measured: number;
  verified: number;
  error_share: number | null;
  first_seconds: number | null;
  seconds: number | null;
}

export interface Graph {
  format: "microscope-graph";
  version: 1;
  model: string;
  model_fingerprint: string;
  prompt: string;
  tokens: GraphToken[];
  target: GraphTarget;
  n_layers: number;
  saes: GraphSae[];
  precision: string;
  runs_in: string;
  mlp: "secant" | "gradient";
  nodes: GraphNode[];
  edges: Edge[];
  components: Component[];
  completeness: number | null;
  accounts: Account[];
  summary: Summary;
  notes: string[];
}

export interface GraphUpdate {
  phase: "components" | "hop" | "verify" | "done";
  done: number;
  total: number;
  nodes: GraphNode[];
  edges: Edge[];
  accounts: Account[];
  components: Component[];
  completeness: number | null;
  summary: Summary | null;
  notes: string[];
}

export interface Contributor {
  kind: "embedding" | "head" | "attention" | "mlp" | "block" | "feature" | "error" | "bias";
  attribution: number;
  layer: number | null;
  head: number | null;
  index: number | null;
  sae: string;
}

export interface Attended {
  layer: number;
  head: number;
  query: number;
  key: number;
  score: number;
  weight: number;
  bilinear: number;
  position_term: number;
  query_contributors: Contributor[];
  key_contributors: Contributor[];
  pairs: { query: number; key: number; attribution: number }[];
}

/** What tells an edge from others. */
export const edgeKey = (edge: Pick<Edge, "from" | "to" | "side">): string => `${edge.from}\n${edge.to}\n${edge.side}`;
