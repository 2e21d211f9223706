/** Names of the API's shapes, and the shapes of what the schema leaves open. */

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Me = Schemas["Me"];
export type Project = Schemas["Project"];
export type Member = Schemas["Member"];
export type Token = Schemas["Token"];
export type Scope = Token["scopes"][number];
export type Invitation = Schemas["Invitation"];
export type OwnUsage = Schemas["OwnUsage"];
export type Role = Member["role"];
export type Model = Schemas["Model"];
export type Corpus = Schemas["Corpus"];
export type Recording = Schemas["Recording"];
export type Sae = Schemas["Sae"];
export type Evaluation = Schemas["Evaluation"];
export type Goal = Schemas["Goal"];
export type Job = Schemas["JobSummary"];
export type JobEvent = Schemas["EventSummary"];
export type JobKind = Schemas["JobKindInfo"];
export type Preset = Omit<JobKind["presets"][string], "values"> & { values: Record<string, unknown> };
export type FieldSpec = Schemas["FieldSpec"];
export type Feature = Schemas["Feature"];
export type FeatureDetail = Schemas["FeatureDetail"];
export type FeatureDetails = Schemas["FeatureDetails"];
export type Edit = Schemas["Edit"];
export type EditKind = Schemas["EditKind"];
export type EditPlan = Schemas["EditPlan"];
export type Patch = Schemas["Patch"];
export type PatchVersion = Schemas["PatchVersion"];
export type Verdict = Schemas["Verdict"];
export type PatchExport = Schemas["Export"];
export type Certificate = Schemas["Certificate"];
export type Adapter = Schemas["Adapter"];
export type Lineage = Schemas["Lineage"];
export type LineageNode = Schemas["LineageNode"];
export type ResidentState = Schemas["ResidentState"];
export type Running = Schemas["Running"];
export type Artifact = Schemas["Artifact"];

/** `facts` of a model, once it has been looked at. */
export interface ModelFacts {
  family?: string;
  /** Type of the multimodal model whose text part is meant. */
  text_part_of?: string;
  n_layers?: number;
  d_model?: number;
  vocab_size?: number;
  max_context?: number;
  parameters?: number;
  bytes_needed?: Record<string, number>;
  /** Of a model whose weights are rounded: how its logits differ from the whole model's. */
  rounding?: Rounding;
}

export interface Rounding {
  dtype: string;
  /** Precision of the whole model; null when it did not fit and nothing was compared. */
  reference: string | null;
  tokens: number;
  kl?: number;
  kl_max?: number;
  max_abs_logit?: number;
  top1_agreement?: number;
  /** Bytes of the weights by precision. */
  bytes?: Record<string, number>;
}

/** `summary` of a recording. */
export interface RecordingSummary {
  tokens?: number;
  train_tokens?: number;
  held_out_tokens?: number;
  documents?: number;
  held_out_documents?: number;
  seconds?: number;
  tokens_per_second?: number;
  context_length?: number;
  model?: { dtype: string; quantisation: string | null };
  corpus?: { description: string };
  sites?: { site: string; median_norm: number; outlier_norm: number; outliers: number; dtype: string }[];
}

/** `summary` of an adapter, once it has been checked. */
export interface AdapterSummary {
  rank?: number;
  modules?: string[];
  parameters?: number;
  base_model?: string;
}

/** `details` of an evaluation. */
export interface EvaluationDetails {
  site?: string;
  filter_rule?: string;
  honesty?: string;
  density_edges?: number[];
  density_counts?: number[];
  seconds?: number;
}

/** `data` of a job event of the kind `metrics`. */
export interface MetricsData {
  phase?: string;
  done?: number;
  rate?: number | null;
  metrics?: Record<string, number | null>;
}

/** Whether a role may change things; staff looking in have none and may do everything. */
export function mayEdit(role: Role | null | undefined): boolean {
  return role !== "viewer";
}

interface Mean {
  value: number;
  interval: [number, number] | null;
}

interface Parity {
  positions: number;
  contexts: number;
  kl: Mean;
  kl_p95: number;
  kl_max: number;
  top1_agreement: number;
  max_abs_logit: number;
}

interface Collateral {
  kl: Mean;
  perplexity_change: Mean;
}

/** `measured` of a certificate. */
export interface Measured {
  clean?: Parity | null;
  trigger?: Parity | null;
  effect?: {
    kl_patch_base: number | null;
    recovered: number | null;
    features: { site: string; feature: number; base: number; patched: number; export: number }[];
  };
  notes?: string[];
  collateral?: Collateral;
  collateral_of_patch?: Collateral;
  merged_max_abs_logit?: number | null;
  loaders?: Record<string, string>;
}
