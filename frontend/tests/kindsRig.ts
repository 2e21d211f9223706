import type { EditKind } from "@/api/types";
import { kindNamed } from "@/patches/kinds";

function kind(name: string, facts: Partial<EditKind>): EditKind {
  return { ...kindNamed([], name), ...facts };
}

/** A few kinds of edits, as a server describes them. */
export const KINDS = {
  ablate: kind("ablate", { sentence: "ablate {target}", needs_firing: true }),
  scale: kind("scale", { sentence: "scale {target} by {strength}", neutral: 1, slider: { min: -2, max: 8, step: 0.05 }, initial: 2, needs_firing: true }),
  clamp: kind("clamp", { sentence: "set {target} to {strength} × {unit} where it fires", counts: "activation", slider: { min: -2, max: 4, step: 0.05 }, initial: 1 }),
  add: kind("add", { sentence: "add {strength} × {unit} of {target}", counts: "length", neutral: 0, slider: { min: -4, max: 4, step: 0.05 }, initial: 1 }),
  everywhere: kind("everywhere", { sentence: "remove the direction of {target}", acts: "writers" }),
  splice: kind("splice", { sentence: "replace {site} by its reconstruction", refers_to: "sae" }),
  lora: kind("lora", { sentence: "add {strength} × adapter {adapter}", refers_to: "adapter", acts: "modules", neutral: 0, initial: 1 }),
};

export const ALL_KINDS = Object.values(KINDS);
