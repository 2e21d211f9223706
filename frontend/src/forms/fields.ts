/** Forms made from the field specs of the API, so that a new job parameter needs no new code here. */

import type { FieldSpec } from "@/api/types";

/** What stands in an input: text for everything typed or chosen, a boolean for switches. */
export type Entry = string | boolean;
export type Entries = Record<string, Entry>;

/** Parameters a form asks for; paths are filled in by the portal, and so is what the page chooses itself. */
export function askedFields(specs: readonly FieldSpec[], chosenElsewhere: readonly string[] = []): FieldSpec[] {
  return specs.filter((spec) => !spec.place && spec.name !== "resume" && !chosenElsewhere.includes(spec.name));
}

/** "batch_size" as a label: "Batch size"; short names such as k and lr stay as papers write them. */
export function fieldLabel(name: string): string {
  const known: Record<string, string> = { k: "k", lr: "Learning rate", arch: "Architecture", dtype: "Precision" };
  const words = name.replaceAll("_", " ").replace(/\bmb\b/, "(MB)");
  return known[name] ?? words.charAt(0).toUpperCase() + words.slice(1);
}

/** What the inputs show at first. */
export function initialEntries(specs: readonly FieldSpec[]): Entries {
  return Object.fromEntries(specs.map((spec) => [spec.name, entryOf(spec, spec.default)]));
}

/** What the inputs show for given parameters. */
export function entriesOf(specs: readonly FieldSpec[], values: Record<string, unknown>): Entries {
  return Object.fromEntries(specs.filter((spec) => spec.name in values).map((spec) => [spec.name, entryOf(spec, values[spec.name])]));
}

function entryOf(spec: FieldSpec, value: unknown): Entry {
  if (spec.type === "boolean") return value === true;
  if (value == null) return "";
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" || typeof value === "string" ? String(value) : "";
}

const SUFFIXES: Record<string, number> = { k: 1e3, m: 1e6, g: 1e9 };

/**
 * A number as people type it: 1000000, 1 000 000, 1e6, 2M, 2.5k. For `latents`, k means 1024, as in the
 * names of published SAEs. Null when it is none.
 */
export function parseNumber(text: string, unit = ""): number | null {
  const spaceless = text.trim().replace(/[\s_\u202f\u00a0]/g, "");
  // A comma counts only between groups of three digits: "0,5" could mean two things, so it means none.
  const bare = /^\d{1,3}(,\d{3})+$/.test(spaceless) ? spaceless.replaceAll(",", "") : spaceless;
  const match = /^([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmg]?)$/i.exec(bare);
  if (!match) return null;
  const suffix = match[2]!.toLowerCase();
  const factor = suffix === "k" && unit === "latents" ? 1024 : (SUFFIXES[suffix] ?? 1);
  const value = Number(match[1]) * factor;
  return Number.isFinite(value) ? value : null;
}

/** Why an entry cannot be sent, or null. */
export function entryProblem(spec: FieldSpec, entry: Entry | undefined): string | null {
  if (typeof entry === "boolean") return null;
  const text = (entry ?? "").trim();
  if (text === "") return spec.required ? "Needed." : null;
  for (const part of spec.many ? splitList(text) : [text]) {
    if (spec.choices.length > 0 && !spec.choices.includes(part)) return `Choose ${spec.choices.join(", ")}.`;
    const problem = partProblem(spec, part);
    if (problem) return problem;
  }
  return null;
}

function partProblem(spec: FieldSpec, text: string): string | null {
  if (spec.type !== "integer" && spec.type !== "number") return null;
  const value = parseNumber(text, spec.unit);
  if (value === null) return `“${text}” is no number.`;
  if (spec.type === "integer" && !Number.isInteger(value)) return "Needs a whole number.";
  if (spec.minimum !== null && value < spec.minimum) return `At least ${spec.minimum}.`;
  if (spec.exclusive_minimum !== null && value <= spec.exclusive_minimum) return `Above ${spec.exclusive_minimum}.`;
  if (spec.maximum !== null && value > spec.maximum) return `At most ${spec.maximum}.`;
  return null;
}

/** The parts of a list as it is typed, apart by commas or spaces; what stands in brackets or quotes stays whole. */
export function splitList(text: string): string[] {
  return text.match(/(?:\[[^\]]*\]|\{[^}]*\}|"[^"]*"|[^,;\s])+/g) ?? [];
}

/**
 * The parameters to send: what differs from the default, so that the job's own defaults stay in force; and
 * those named in `always`, where something else than the default would take the place of what is left out.
 */
export function paramsOf(specs: readonly FieldSpec[], entries: Entries, always: readonly string[] = []): Record<string, unknown> {
  const params: Record<string, unknown> = {};
  for (const spec of specs) {
    const value = valueOf(spec, entries[spec.name]);
    if (value !== undefined && (always.includes(spec.name) || JSON.stringify(value) !== JSON.stringify(spec.default))) params[spec.name] = value;
  }
  return params;
}

function valueOf(spec: FieldSpec, entry: Entry | undefined): unknown {
  if (spec.type === "boolean") return entry === true;
  const text = typeof entry === "string" ? entry.trim() : "";
  if (text === "") return undefined;
  const one = (part: string) => (spec.type === "integer" || spec.type === "number" ? parseNumber(part, spec.unit) : part);
  return spec.many ? splitList(text).map(one) : one(text);
}
