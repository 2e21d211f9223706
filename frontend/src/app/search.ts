/** The part of each page's state that lives in its address. Anything malformed in it is ignored. */

import type { FeatureOrdering } from "@/api/features";
import type { GraphTarget } from "@/graphs/types";
import { viewOf, type ViewSearch } from "@/graphs/view";

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
  /** With `add`: ablate it at this token of the prompt only. */
  at?: number;
  prompt?: string;
}

export function lab(raw: Raw): LabSearch {
  return { model: text(raw.model), patch: text(raw.patch), add: text(raw.add), at: positive(raw.at), prompt: text(raw.prompt) };
}

/** Graphs: the form that brings a file in. */
export function graphs(raw: Raw): { import?: true } {
  return { import: flag(raw.import) };
}

const TARGET_KINDS = ["feature", "token", "difference", "attention", "direction"] as const;

function whole(value: unknown): number | null {
  return typeof value === "number" && Number.isSafeInteger(value) ? value : null;
}

/** A target from an address, complete; undefined when it is none. */
export function target(raw: unknown): GraphTarget | undefined {
  if (typeof raw !== "object" || raw === null) return undefined;
  const given = raw as Raw;
  const kind = oneOf(given.kind, TARGET_KINDS);
  if (!kind) return undefined;
  const { vector } = given;
  return {
    kind,
    position: whole(given.position) ?? -1,
    sae: text(given.sae) ?? "",
    index: whole(given.index),
    token: whole(given.token),
    against: whole(given.against),
    layer: whole(given.layer),
    head: whole(given.head),
    key: whole(given.key),
    vector: Array.isArray(vector) ? vector.filter((one): one is number => typeof one === "number" && Number.isFinite(one)) : [],
  };
}

export interface NewGraphSearch extends ViewSearch {
  model?: string;
  prompt?: string;
  /** Parts of it that do not count may be left out. */
  target?: Partial<GraphTarget>;
  /** Fingerprints; all below the target when left out. */
  saes?: string[];
  hops?: number;
  parents?: number;
  shown?: number;
}

function sized(value: unknown): number | undefined {
  const found = positive(value);
  return found !== undefined && found >= 1 ? Math.round(found) : undefined;
}

export function newGraph(raw: Raw): NewGraphSearch {
  return {
    model: text(raw.model),
    prompt: text(raw.prompt),
    target: target(raw.target) && (raw.target as Partial<GraphTarget>),
    saes: Array.isArray(raw.saes) ? raw.saes.map(text).filter((one) => one !== undefined) : undefined,
    hops: sized(raw.hops),
    parents: sized(raw.parents),
    shown: sized(raw.shown),
    ...graph(raw),
  };
}

/** What is set on a graph's page, as far as the address says. */
export function graph(raw: Raw): ViewSearch {
  const view = viewOf(raw);
  const has = (part: keyof ViewSearch) => raw[part] !== undefined;
  return {
    pins: has("pins") ? view.pins : undefined,
    groups: has("groups") ? view.groups : undefined,
    least: has("least") ? view.least : undefined,
    most: has("most") ? view.most : undefined,
    node: view.node ?? undefined,
    edge: view.edge ?? undefined,
  };
}
