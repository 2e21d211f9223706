/** The part of each page's state that lives in its address. Anything malformed in it is ignored. */

import type { FeatureOrdering } from "@/api/features";

type Raw = Record<string, unknown>;

function text(value: unknown): string | undefined {
  if (typeof value === "number") return String(value);
  return typeof value === "string" && value !== "" ? value : undefined;
}

function flag(value: unknown): true | undefined {
  return value === true || value === "true" || value === 1 ? true : undefined;
}

function positive(value: unknown): number | undefined {
  const found = typeof value === "string" ? Number(value) : value;
  return typeof found === "number" && Number.isFinite(found) && found >= 0 ? found : undefined;
}

function oneOf<Choice extends string>(value: unknown, choices: readonly Choice[]): Choice | undefined {
  return choices.find((choice) => choice === value);
}

/** Only addresses of this application may be returned to. */
export function login(raw: Raw): { next?: string } {
  const next = text(raw.next);
  return { next: next?.startsWith("/") && !next.startsWith("//") ? next : undefined };
}

export const JOB_LISTS = ["active", "finished"] as const;

export function jobs(raw: Raw): { show?: (typeof JOB_LISTS)[number]; add?: true } {
  return { show: oneOf(raw.show, JOB_LISTS), add: flag(raw.add) };
}

export function adding(raw: Raw): { add?: true } {
  return { add: flag(raw.add) };
}

/** Patches: the one being taken out, or the form that brings an adapter in. */
export function patches(raw: Raw): { export?: string; add?: true } {
  return { export: text(raw.export), add: flag(raw.add) };
}

export function newRecording(raw: Raw): { add?: true; model?: string; corpus?: true; import?: true } {
  return { add: flag(raw.add), model: text(raw.model), corpus: flag(raw.corpus), import: flag(raw.import) };
}

export function newSae(raw: Raw): { add?: true; recording?: string } {
  return { add: flag(raw.add), recording: text(raw.recording) };
}

/** SAEs to compare, by id. */
export function compare(raw: Raw): { saes?: string[] } {
  const found = Array.isArray(raw.saes) ? raw.saes.map(text).filter((id) => id !== undefined) : undefined;
  return { saes: found };
}

export const ORDERINGS: readonly FeatureOrdering[] = [
  "index", "-index", "density", "-density", "max_activation", "-max_activation", "p999", "-p999",
];

export interface FeatureSearch {
  search?: string;
  ordering?: FeatureOrdering;
  starred?: true;
  labelled?: true;
  dead?: true;
  min?: number;
  max?: number;
  /** "Which features fire on this prompt?" */
  prompt?: string;
}

export function features(raw: Raw): FeatureSearch {
  return {
    search: text(raw.search),
    ordering: oneOf(raw.ordering, ORDERINGS),
    starred: flag(raw.starred),
    labelled: flag(raw.labelled),
    dead: flag(raw.dead),
    min: positive(raw.min),
    max: positive(raw.max),
    prompt: text(raw.prompt),
  };
}

export interface LabSearch {
  model?: string;
  patch?: string;
  /** A feature to put on the stack when the page opens. */
  add?: string;
  prompt?: string;
}

export function lab(raw: Raw): LabSearch {
  return { model: text(raw.model), patch: text(raw.patch), add: text(raw.add), prompt: text(raw.prompt) };
}
