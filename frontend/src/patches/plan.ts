/** The stack of edits in the patch lab, and its translation to the plan the engine reads. */

import type { Edit, EditKind, EditPlan } from "@/api/types";
import { kindNamed } from "./kinds";

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
  strengths: Readonly<Record<string, number>>;
  measures: Record<keyof Percentile, Measure>;
  positions: Positions;
  enabled: boolean;
}

export const EVERYWHERE: Positions = { mode: "all", start: 0, indices: [], include_sinks: false };

function measuresOf(p999: Percentile | null): EditCard["measures"] {
  const measure = (value: number | undefined): Measure => (value === undefined ? { unit: "raw", value: 1 } : { unit: "p999", value });
  return { activation: measure(p999?.activation), length: measure(p999?.length) };
}

let cards = 0;

/** A card for a feature, with an id that is unique on this page. */
export function newCard(feature: PickedFeature, kind: EditKind): EditCard {
  cards += 1;
  return {
    id: `edit-${cards}`,
    kind,
    feature,
    adapter: "",
    modules: [],
    strengths: {},
    measures: measuresOf(feature.p999),
    positions: EVERYWHERE,
    enabled: true,
  };
}

/** A card of a kind that uses a whole SAE. */
export function saeCard(kind: EditKind, sae: { id: string; fingerprint: string }, site: string): EditCard {
  return newCard({ saeId: sae.id, sae: sae.fingerprint, index: -1, site, p999: null }, kind);
}

/** A card of a kind that uses an adapter: some of its modules or, when none is named, all. */
export function adapterCard(kind: EditKind, adapter: string, modules: readonly string[] = []): EditCard {
  return { ...newCard({ saeId: "", sae: "", index: -1, site: "", p999: null }, kind), adapter, modules };
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
  return card.strengths[card.kind.name] ?? card.kind.initial;
}

export function withStrength(card: EditCard, strength: number): EditCard {
  return { ...card, strengths: { ...card.strengths, [card.kind.name]: strength } };
}

/** What the card's strength counts; null for a plain factor. */
export function measureOf(card: EditCard): Measure | null {
  const { counts } = card.kind;
  return counts && card.measures[counts];
}

/** True when the card provably changes nothing. */
export function isNoop(card: EditCard): boolean {
  return !card.enabled || strengthOf(card) === card.kind.neutral;
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
    // a schema of another server lists kinds that this one's types do not
    kind: card.kind.name as Edit["kind"],
    site,
    feature: index < 0 ? null : { sae, index },
    sae: index < 0 ? sae : "",
    adapter: card.adapter,
    modules: [...card.modules],
    strength: strengthOf(card),
    unit: measure?.unit ?? "raw",
    unit_value: measure?.value ?? 1,
    positions: card.kind.acts !== "site" && card.positions.mode !== "all" ? EVERYWHERE : card.positions,
    enabled: card.enabled,
  };
}

/** The stack of a stored plan; `find` supplies what is known of its features. */
export function stackOf(plan: EditPlan, kinds: readonly EditKind[], find: (edit: Edit) => PickedFeature): EditCard[] {
  return plan.edits.map((edit) => {
    const card = newCard(find(edit), kindNamed(kinds, edit.kind));
    const { counts } = card.kind;
    return {
      ...card,
      adapter: edit.adapter,
      modules: edit.modules,
      measures: counts ? { ...card.measures, [counts]: { unit: edit.unit, value: edit.unit_value } } : card.measures,
      strengths: { [edit.kind]: edit.strength },
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
