/** Texts to record: one corpus, or several mixed by weight. */

import { parseNumber } from "@/forms/fields";

export interface Part {
  /** Null: the first corpus there is. */
  corpus: string | null;
  weight: string;
}

export const FIRST_PART: Part = { corpus: null, weight: "1" };

/** Why a weight cannot be used, or null. */
export function weightProblem(text: string): string | null {
  const weight = parseNumber(text);
  return weight !== null && weight > 0 ? null : "Needs a number above zero.";
}

/** Share of tokens each part gets, or null while a weight is no number. */
export function shares(parts: readonly Part[]): number[] | null {
  if (parts.some((part) => weightProblem(part.weight))) return null;
  const weights = parts.map((part) => parseNumber(part.weight) ?? 0);
  const total = weights.reduce((sum, one) => sum + one, 0);
  return weights.map((one) => one / total);
}

type Body = { corpus: string } | { mixture: { corpus: string; weight: number }[] };

/** What is sent, or null while something is missing. */
export function mixtureOf(parts: readonly Part[]): Body | null {
  const first = parts[0]?.corpus;
  if (parts.some((part) => !part.corpus) || !first) return null;
  if (parts.length === 1) return { corpus: first };
  if (!shares(parts)) return null;
  return { mixture: parts.map((part) => ({ corpus: part.corpus ?? "", weight: parseNumber(part.weight) ?? 0 })) };
}
