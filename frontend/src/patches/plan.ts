/** The stack of edits in the patch lab, and its translation to the plan the engine reads. */

import type { Edit, EditPlan } from "@/api/types";

export type EditKind = Edit["kind"];
export type Unit = Edit["unit"];
export type Positions = Edit["positions"];

/** What the feature's 99.9th percentile is worth: as an activation, and as a length in the residual stream. */
export interface Percentile {
  activation: number;
  length: number;
}

/** The feature a card acts on. */
export interface PickedFeature {
  /** Row id of the SAE in the portal; empty when a stored plan names an SAE that is not at hand. */
  saeId: string;
  /** Content fingerprint, which is how plans name an SAE; empty for edits without one. */
  sae: string;
  /** −1 for edits that act through no single feature. */
  index: number;
  site: string;
  /** null while unknown. */
  p999: Percentile | null;
}

/** What strength is counted in. */
interface Measure {
  unit: Unit;
  value: number;
}

/** An edit as a card of the stack: it keeps a strength for every kind, so that switching loses nothing. */
export interface EditCard {
  id: string;
  kind: EditKind;
  feature: PickedFeature;
  /** Content fingerprint of the adapter of a `lora`, and which of its modules; none means all. */
  adapter: string;
  modules: readonly string[];
  strengths: Record<EditKind, number>;
  measures: Record<keyof Percentile, Measure>;
  positions: Positions;
  enabled: boolean;
}

/** The kinds that act through one feature, which a card can switch between. */
export const FEATURE_KINDS: readonly EditKind[] = [
  "ablate", "scale", "clamp_firing", "clamp_all", "add", "project", "ablate_everywhere",
];

interface KindFacts {
  title: string;
  /** What the edit does, in one line. */
  effect: string;
  /** Slider range and step; null when the kind has no strength. */
  slider: { min: number; max: number; step: number } | null;
  initial: number;
  /** The strength that changes nothing. */
  neutral: number | null;
  /** What strength counts; null for a plain factor. */
  counts: keyof Percentile | null;
  /** It changes nothing where the feature is silent. */
  needsFiring: boolean;
}

export const KINDS: Record<EditKind, KindFacts> = {
  ablate: { title: "Ablate", effect: "removes what the feature writes", slider: null, initial: 0, neutral: null, counts: null, needsFiring: true },
  scale: {
    title: "Scale",
    effect: "multiplies the feature where it fires; 1 changes nothing, 0 ablates",
    slider: { min: -2, max: 8, step: 0.05 },
    initial: 2,
    neutral: 1,
    counts: null,
    needsFiring: true,
  },
  clamp_firing: {
    title: "Clamp where it fires",
    effect: "sets the feature to one value where it fires, in multiples of its own 99.9th percentile",
    slider: { min: -2, max: 4, step: 0.05 },
    initial: 1,
    neutral: null,
    counts: "activation",
    needsFiring: true,
  },
  clamp_all: {
    title: "Clamp at every token",
    effect: "sets the feature to one value at every token, in multiples of its own 99.9th percentile",
    slider: { min: -2, max: 4, step: 0.05 },
    initial: 1,
    neutral: null,
    counts: "activation",
    needsFiring: false,
  },
  add: {
    title: "Add",
    effect: "adds the feature's direction everywhere, in multiples of its own 99.9th percentile",
    slider: { min: -4, max: 4, step: 0.05 },
    initial: 1,
    neutral: 0,
    counts: "length",
    needsFiring: false,
  },
  project: {
    title: "Project",
    effect: "multiplies the stream's component along the direction; 1 changes nothing, 0 removes it",
    slider: { min: -1, max: 3, step: 0.05 },
    initial: 0,
    neutral: 1,
    counts: null,
    needsFiring: false,
  },
  ablate_everywhere: {
    title: "Ablate everywhere",
    effect: "removes the direction from the embedding and from all that blocks write, as changed weights would",
    slider: null,
    initial: 0,
    neutral: null,
    counts: null,
    needsFiring: false,
  },
  splice: { title: "Splice", effect: "replaces the stream by the SAE's reconstruction; sinks pass through", slider: null, initial: 0, neutral: null, counts: null, needsFiring: false },
  lora: {
    title: "LoRA",
    effect: "adds a low-rank change of weights; 1 is the adapter as it came, 0 changes nothing",
    slider: { min: -1, max: 3, step: 0.05 },
    initial: 1,
    neutral: 0,
    counts: null,
    needsFiring: false,
  },
};

/** The kinds that stand for changed weights, which spare no token. */
export const WEIGHT_KINDS: readonly EditKind[] = ["ablate_everywhere", "lora"];

export const EVERYWHERE: Positions = { mode: "all", start: 0, indices: [], include_sinks: false };

const INITIAL = Object.fromEntries(Object.entries(KINDS).map(([kind, facts]) => [kind, facts.initial])) as Record<EditKind, number>;

function measuresOf(p999: Percentile | null): EditCard["measures"] {
  const measure = (value: number | undefined): Measure => (value === undefined ? { unit: "raw", value: 1 } : { unit: "p999", value });
  return { activation: measure(p999?.activation), length: measure(p999?.length) };
}

let cards = 0;

/** A card for a feature, with an id that is unique on this page. */
export function newCard(feature: PickedFeature, kind: EditKind = "ablate"): EditCard {
  cards += 1;
  return {
    id: `edit-${cards}`,
    kind,
    feature,
    adapter: "",
    modules: [],
    strengths: INITIAL,
    measures: measuresOf(feature.p999),
    positions: EVERYWHERE,
    enabled: true,
  };
}

/** A card that replaces a site by an SAE's reconstruction. */
export function spliceCard(sae: { id: string; fingerprint: string }, site: string): EditCard {
  return newCard({ saeId: sae.id, sae: sae.fingerprint, index: -1, site, p999: null }, "splice");
}

/** A card that adds an adapter's change of weights, to some of its modules or, when none is named, to all. */
export function loraCard(adapter: string, modules: readonly string[] = []): EditCard {
  return { ...newCard({ saeId: "", sae: "", index: -1, site: "", p999: null }, "lora"), adapter, modules };
}

/** The same card with another operation; the percentile is supplied once it is known. */
export function withKind(card: EditCard, kind: EditKind, p999: Percentile | null = card.feature.p999): EditCard {
  if (p999 === null || card.feature.p999 !== null) return { ...card, kind };
  const fresh = measuresOf(p999);
  // A unit that came with a stored plan stays.
  const keep = (known: Measure, late: Measure): Measure => (known.unit === "raw" && known.value === 1 ? late : known);
  return {
    ...card,
    kind,
    measures: { activation: keep(card.measures.activation, fresh.activation), length: keep(card.measures.length, fresh.length) },
    feature: { ...card.feature, p999 },
  };
}

export function strengthOf(card: EditCard): number {
  return card.strengths[card.kind];
}

export function withStrength(card: EditCard, strength: number): EditCard {
  return { ...card, strengths: { ...card.strengths, [card.kind]: strength } };
}

/** What the card's strength counts; null for a plain factor. */
export function measureOf(card: EditCard): Measure | null {
  const counts = KINDS[card.kind].counts;
  return counts && card.measures[counts];
}

/** True when the card provably changes nothing. */
export function isNoop(card: EditCard): boolean {
  return !card.enabled || strengthOf(card) === KINDS[card.kind].neutral;
}

/** What a card acts through, in words. */
export function targetOf(card: EditCard): string {
  if (card.adapter) return `adapter ${card.adapter.slice(0, 8)}`;
  return card.feature.index < 0 ? `SAE at ${card.feature.site}` : `feature ${card.feature.index}`;
}

/** The plan of a stack, complete: muted edits are in it, marked as such. */
export function planOf(stack: readonly EditCard[]): EditPlan {
  return { version: 2, edits: stack.map(editOf) };
}

function editOf(card: EditCard): Edit {
  const measure = measureOf(card);
  const { sae, index, site } = card.feature;
  return {
    kind: card.kind,
    site,
    feature: index < 0 ? null : { sae, index },
    sae: index < 0 ? sae : "",
    adapter: card.adapter,
    modules: [...card.modules],
    strength: strengthOf(card),
    unit: measure?.unit ?? "raw",
    unit_value: measure?.value ?? 1,
    positions: WEIGHT_KINDS.includes(card.kind) && card.positions.mode !== "all" ? EVERYWHERE : card.positions,
    enabled: card.enabled,
  };
}

/** The stack of a stored plan; `find` supplies what is known of its features. */
export function stackOf(plan: EditPlan, find: (edit: Edit) => PickedFeature): EditCard[] {
  return plan.edits.map((edit) => {
    const card = newCard(find(edit), edit.kind);
    const counts = KINDS[edit.kind].counts;
    return {
      ...card,
      adapter: edit.adapter,
      modules: edit.modules,
      measures: counts ? { ...card.measures, [counts]: { unit: edit.unit, value: edit.unit_value } } : card.measures,
      strengths: { ...card.strengths, [edit.kind]: edit.strength },
      positions: edit.positions,
      enabled: edit.enabled,
    };
  });
}

/** A plan with its keys in one order, so that two compare as text. */
export function ordered(plan: EditPlan): EditPlan {
  return {
    version: 2,
    edits: plan.edits.map(({ kind, site, feature, sae, adapter, modules, strength, unit, unit_value, positions, enabled }) => ({
      kind, site, feature: feature ? { sae: feature.sae, index: feature.index } : null,
      sae, adapter, modules, strength, unit, unit_value,
      positions: { mode: positions.mode, start: positions.start, indices: positions.indices, include_sinks: positions.include_sinks },
      enabled,
    })),
  };
}

/** Only this card acts; when that is so already, all act again. */
export function soloed(stack: readonly EditCard[], id: string): EditCard[] {
  const alone = stack.every((card) => card.enabled === (card.id === id));
  return stack.map((card) => ({ ...card, enabled: alone || card.id === id }));
}

/** Move a card by some places, staying within the stack. */
export function moved(stack: readonly EditCard[], id: string, by: number): EditCard[] {
  const from = stack.findIndex((card) => card.id === id);
  if (from === -1) return [...stack];
  const to = Math.max(0, Math.min(stack.length - 1, from + by));
  const rest = stack.filter((card) => card.id !== id);
  return [...rest.slice(0, to), stack[from]!, ...rest.slice(to)];
}

/** Round to the slider's grid without binary dust, so that 1 is exactly 1. */
export function snapped(value: number, step: number): number {
  const decimals = Math.max(0, -Math.floor(Math.log10(step)) + 1);
  return Number((Math.round(value / step) * step).toFixed(decimals));
}
