import { describe, expect, it } from "vitest";
import { begin, change, redo, settle, undo } from "@/patches/history";
import { positionsOf, positionWords } from "@/patches/positions";
import {
  adapterCard, EVERYWHERE, isNoop, moved, newCard, planOf, saeCard, snapped, soloed, stackOf, strengthOf, withKind, withStrength, type PickedFeature,
} from "@/patches/plan";
import { ALL_KINDS, KINDS } from "./kindsRig";

const feature: PickedFeature = {
  saeId: "row", sae: "f".repeat(32), index: 42, site: "resid_post.15", p999: { activation: 5, length: 20.5 },
};

describe("history", () => {
  it("goes back and forth through every step", () => {
    let history = begin(0);
    for (const next of [1, 2, 3]) history = change(history, next);
    history = undo(undo(history));
    expect(history.present).toBe(1);
    history = redo(history);
    expect(history.present).toBe(2);
    expect(redo(redo(redo(history))).present).toBe(3);
    expect(undo(undo(undo(undo(history)))).present).toBe(0);
  });
  it("makes one step of a drag, and a new one after it ended", () => {
    let history = begin(0);
    for (const next of [1, 2, 3]) history = change(history, next, "strength:a");
    history = settle(history);
    history = change(history, 9, "strength:a");
    expect(undo(history).present).toBe(3);
    expect(undo(undo(history)).present).toBe(0);
  });
  it("keeps drags of different things apart", () => {
    let history = change(begin(0), 1, "a");
    history = change(history, 2, "b");
    expect(undo(history).present).toBe(1);
  });
  it("forgets what was undone once something new happens, also within a drag", () => {
    let history = change(change(begin(0), 1), 2);
    history = change(undo(history), 5, "a");
    expect(redo(history).present).toBe(5);
    expect(undo(history).present).toBe(1);
  });
  it("does not record a change to the same state", () => {
    const state = {};
    expect(change(begin(state), state).past).toHaveLength(0);
  });
});

describe("plans", () => {
  it("carry kind, site, fingerprint and strength", () => {
    const card = withStrength(newCard(feature, KINDS.scale), 3);
    expect(planOf([card])).toEqual({
      version: 2,
      edits: [
        {
          kind: "scale", site: "resid_post.15", feature: { sae: feature.sae, index: 42 }, sae: "", adapter: "", modules: [], strength: 3, unit: "raw",
          unit_value: 1, positions: { mode: "all", start: 0, indices: [], include_sinks: false }, enabled: true,
        },
      ],
    });
  });
  it("count `add` in the feature's own 99.9th percentile", () => {
    const [edit] = planOf([newCard(feature, KINDS.add)]).edits;
    expect(edit).toMatchObject({ unit: "p999", unit_value: 20.5, strength: 1 });
  });
  it("fall back to raw length when the percentile is unknown", () => {
    const [edit] = planOf([newCard({ ...feature, p999: null }, KINDS.add)]).edits;
    expect(edit).toMatchObject({ unit: "raw", unit_value: 1 });
  });
  it("keep muted edits, marked", () => {
    expect(planOf([{ ...newCard(feature, KINDS.ablate), enabled: false }]).edits[0]).toMatchObject({ enabled: false });
  });
  it("survive the way to the server and back", () => {
    const stack = [
      newCard(feature, KINDS.ablate),
      withStrength(newCard(feature, KINDS.add), -1.5),
      { ...withStrength(newCard(feature, KINDS.scale), 0.25), enabled: false },
      withStrength(newCard(feature, KINDS.clamp), 3),
      newCard(feature, KINDS.everywhere),
    ];
    const plan = planOf(stack);
    expect(planOf(stackOf(plan, ALL_KINDS, () => feature))).toEqual(plan);
    expect(planOf(stackOf(plan, ALL_KINDS, () => ({ ...feature, p999: null })))).toEqual(plan);
  });
  it("carry edits that act through no single feature", () => {
    const plan = planOf([saeCard(KINDS.splice, { id: "row", fingerprint: "f" }, "resid_post.3"), withStrength(adapterCard(KINDS.lora, "a".repeat(32)), 0.5)]);
    expect(plan.edits).toMatchObject([
      { kind: "splice", site: "resid_post.3", feature: null, sae: "f", adapter: "" },
      { kind: "lora", site: "", feature: null, sae: "", adapter: "a".repeat(32), strength: 0.5 },
    ]);
    const find = (edit: { sae: string; site: string }) => ({ saeId: "", sae: edit.sae, index: -1, site: edit.site, p999: null });
    expect(planOf(stackOf(plan, ALL_KINDS, find))).toEqual(plan);
  });
  it("count the clamps in the feature's activation", () => {
    const [edit] = planOf([withStrength(newCard(feature, KINDS.clamp), 2)]).edits;
    expect(edit).toMatchObject({ unit: "p999", unit_value: 5, strength: 2 });
  });
  it("know what changes nothing", () => {
    expect(isNoop(withStrength(newCard(feature, KINDS.scale), KINDS.scale.neutral!))).toBe(true);
    expect(isNoop(withStrength(newCard(feature, KINDS.add), 0))).toBe(true);
    expect(isNoop(newCard(feature, KINDS.ablate))).toBe(false);
    expect(isNoop({ ...newCard(feature, KINDS.ablate), enabled: false })).toBe(true);
  });
  it("remember a strength per kind, so that switching loses nothing", () => {
    const card = withStrength(newCard(feature, KINDS.scale), 5);
    expect(strengthOf({ ...card, kind: KINDS.add })).toBe(KINDS.add.initial);
    expect(strengthOf({ ...card, kind: KINDS.scale })).toBe(5);
  });
  it("take up the percentile when it becomes known, but never change a unit that was stored", () => {
    const unknown = newCard({ ...feature, p999: null }, KINDS.scale);
    expect(planOf([withKind(unknown, KINDS.add, { activation: 5, length: 20.5 })]).edits[0]).toMatchObject({ unit: "p999", unit_value: 20.5 });
    expect(planOf([withKind(unknown, KINDS.add)]).edits[0]).toMatchObject({ unit: "raw", unit_value: 1 });
    const [stored] = stackOf(planOf([newCard(feature, KINDS.add)]), ALL_KINDS, () => ({ ...feature, p999: { activation: 9, length: 99 } }));
    expect(planOf([withKind(withKind(stored!, KINDS.scale), KINDS.add, { activation: 1, length: 50 })]).edits[0]).toMatchObject({ unit: "p999", unit_value: 20.5 });
  });
  it("keep an edit of a kind that the server has no package for any more", () => {
    const plan = planOf([withStrength(newCard(feature, { ...KINDS.add, name: "gone" }), 2)]);
    const [card] = stackOf(plan, ALL_KINDS, () => feature);
    expect(card!.kind).toMatchObject({ name: "gone", slider: null });
    expect(planOf([card!]).edits[0]).toMatchObject({ kind: "gone", strength: 2 });
  });
  it("reorder within bounds", () => {
    const stack = [newCard(feature, KINDS.ablate), newCard(feature, KINDS.ablate), newCard(feature, KINDS.ablate)];
    const ids = stack.map((card) => card.id);
    expect(moved(stack, ids[0]!, 1).map((card) => card.id)).toEqual([ids[1], ids[0], ids[2]]);
    expect(moved(stack, ids[0]!, -1).map((card) => card.id)).toEqual(ids);
    expect(moved(stack, ids[2]!, 5).map((card) => card.id)).toEqual(ids);
    expect(moved(stack, "unknown", 1).map((card) => card.id)).toEqual(ids);
  });
  it("let one edit act alone, and all again", () => {
    const stack = [newCard(feature, KINDS.ablate), { ...newCard(feature, KINDS.ablate), enabled: false }, newCard(feature, KINDS.ablate)];
    const enabled = (cards: readonly { enabled: boolean }[]) => cards.map((card) => card.enabled);
    const alone = soloed(stack, stack[1]!.id);
    expect(enabled(alone)).toEqual([false, true, false]);
    expect(enabled(soloed(alone, stack[2]!.id))).toEqual([false, false, true]);
    expect(enabled(soloed(alone, stack[1]!.id))).toEqual([true, true, true]);
  });
  it("spare no token where they stand for changed weights, whatever the card was limited to before", () => {
    const limited = { ...newCard(feature, KINDS.ablate), positions: { ...EVERYWHERE, mode: "from" as const, start: 4 } };
    expect(planOf([limited]).edits[0]!.positions).toEqual(limited.positions);
    expect(planOf([{ ...limited, kind: KINDS.everywhere }]).edits[0]!.positions).toEqual(EVERYWHERE);
  });
  it("snap to the slider's grid without binary dust", () => {
    expect(snapped(0.1 + 0.2, 0.05)).toBe(0.3);
    expect(snapped(0.9999999, 0.05)).toBe(1);
    expect(snapped(-1.07, 0.05)).toBe(-1.05);
    expect(Object.is(snapped(3.4, 1), 3)).toBe(true);
  });
});

describe("positions", () => {
  it("are read as numbers and ranges", () => {
    expect(positionsOf("7-9, 4 4;11")).toEqual([4, 7, 8, 9, 11]);
    expect(positionsOf("")).toEqual([]);
    for (const wrong of ["-1", "3-", "9-7", "x", "1.5", "0-99999"]) expect(positionsOf(wrong)).toBeNull();
  });
  it("are said in words", () => {
    expect(positionWords(EVERYWHERE)).toBe("every token, sparing special tokens and sinks");
    expect(positionWords({ ...EVERYWHERE, mode: "from", start: 3, include_sinks: true })).toBe("from token 3 on, special tokens and sinks too");
    expect(positionWords({ ...EVERYWHERE, mode: "set", indices: [2] })).toContain("at token 2");
  });
});
