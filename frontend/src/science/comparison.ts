import type { Sae } from "@/api/types";
import { fixed, integer, number, percent } from "./format";

type Show = (value: number | null | undefined) => string;

interface Metric {
  name: string;
  label: string;
  meaning: string;
  show: Show;
  better?: "lower" | "higher";
}

const METRICS: readonly Metric[] = [
  { name: "fvu", label: "FVU", meaning: "Σ‖x−x̂‖² / Σ‖x−μ‖², ordinary tokens", show: number, better: "lower" },
  { name: "fvu_all_tokens", label: "FVU, every token", meaning: "sinks counted: not the goal", show: number },
  { name: "nmse0", label: "NMSE against zero", meaning: "Σ‖x−x̂‖² / Σ‖x‖²", show: number, better: "lower" },
  { name: "cosine", label: "Cosine", meaning: "mean cosine of x and x̂", show: (value) => fixed(value, 4), better: "higher" },
  { name: "l0", label: "L0", meaning: "active latents per token", show: number },
  { name: "ce_recovered", label: "CE recovered", meaning: "(CE zeroed − CE with SAE) / (CE zeroed − CE model)", show: percent, better: "higher" },
  { name: "kl_recovered", label: "KL recovered", meaning: "1 − KL with SAE / KL zeroed", show: percent, better: "higher" },
  { name: "dead_held_out", label: "Dead, held out", meaning: "latents that fire on no held-out token", show: percent, better: "lower" },
  { name: "dead_in_training", label: "Dead in training", meaning: "latents silent at the end of training", show: percent, better: "lower" },
  { name: "probe_auroc_1", label: "Probe AUROC, 1 latent", meaning: "k-sparse probing of text properties", show: (value) => fixed(value, 3), better: "higher" },
  { name: "probe_auroc_5", label: "Probe AUROC, 5 latents", meaning: "k-sparse probing of text properties", show: (value) => fixed(value, 3), better: "higher" },
  { name: "documents", label: "Held-out documents", meaning: "what the intervals resample", show: integer },
];

export interface ComparedCell {
  text: string;
  best: boolean;
}

export interface ComparedRow {
  label: string;
  meaning: string;
  cells: ComparedCell[];
}

/** One row per metric that any of the SAEs has, the best cell of each marked. */
export function comparedRows(saes: readonly Sae[]): ComparedRow[] {
  return METRICS.flatMap(({ name, label, meaning, show, better }) => {
    const values = saes.map((sae) => sae.evaluation?.metrics[name] ?? null);
    const known = values.filter((value) => value !== null);
    if (known.length === 0) return [];
    const best = better === undefined || known.length < 2 ? null : better === "lower" ? Math.min(...known) : Math.max(...known);
    return [{ label, meaning, cells: values.map((value) => ({ text: show(value), best: value !== null && value === best })) }];
  });
}

export interface Interval {
  name: string;
  value: number;
  low: number;
  high: number;
}

/** FVUs with their bootstrap intervals. */
export function fvuIntervals(saes: readonly Sae[]): Interval[] {
  return saes.flatMap((sae) => {
    const metrics = sae.evaluation?.metrics;
    if (metrics?.fvu == null) return [];
    return [{ name: sae.name, value: metrics.fvu, low: metrics.fvu_low ?? metrics.fvu, high: metrics.fvu_high ?? metrics.fvu }];
  });
}

/** True when SAEs were measured on different text, so that their numbers say little about each other. */
export function differentText(saes: readonly Sae[]): boolean {
  return new Set(saes.map((sae) => sae.recording)).size > 1;
}
