import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { canTakePart, usualSaes } from "@/graphs/saes";
import { answeredWhole, graphProgress, keptGraph, type GraphQuestion } from "@/live/graph";
import { LiveSession } from "@/live/liveSession";
import { edge, graphOf, node, update } from "./graphRig";
import { FakeSocket } from "./socketRig";

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "requestAnimationFrame", "cancelAnimationFrame", "performance"] });
  FakeSocket.made = [];
});
afterEach(() => vi.useRealTimers());

const { target } = graphOf([], []);
const question: GraphQuestion = { target, saes: ["s"], hops: 2, parents: 8, shown: 40, verify: true };

function started(): LiveSession {
  const session = new LiveSession("m", 12, { connect: FakeSocket.connect, random: () => 0.5 });
  session.open("Hello");
  session.start();
  FakeSocket.last.open();
  FakeSocket.last.say({ type: "state", state: "ready", code: "", message: "", hint: "", memory_bytes: 1, model: null });
  FakeSocket.last.say({ type: "opened", session: "a", prompt: [], next: [], entropy: 1, milliseconds: 2, reopened: false });
  return session;
}

describe("a live graph", () => {
  it("fills in with the answers to its own run only, and says where it stands", () => {
    const session = started();
    session.readProvenance(question);
    session.readProvenance({ ...question, hops: 1 });
    const [first, second] = FakeSocket.last.of("read_provenance") as unknown as { run: number; hops: number }[];
    expect([first!.hops, second!.hops]).toEqual([2, 1]);
    const begun = (run: number) => ({ type: "graph_begun", session: "a", run, graph: graphOf([node("target")], []) });
    FakeSocket.last.say(begun(first!.run));
    expect(session.store.value.graph!.graph).toBeNull();
    FakeSocket.last.say(begun(second!.run));
    FakeSocket.last.say({ type: "graph_update", session: "a", run: second!.run, update: update({ phase: "verify", done: 3, total: 9, nodes: [node("b")], edges: [edge("b", "target")] }) });
    expect(session.store.value.graph!.graph!.edges).toHaveLength(1);
    expect(graphProgress(session.store.value.graph!)).toBe("measuring edges on the running model (3 of 9)");
    FakeSocket.last.say({ type: "graph_ended", run: second!.run, reason: "done" });
    expect(graphProgress(session.store.value.graph!)).toBe("complete");
  });

  it("that is refused is over; one under way outlives the failure of another question, but not its connection", () => {
    const session = started();
    const failure = { type: "failure", code: "does_not_fire", message: "It does not fire.", hint: "", rev: null };
    session.readProvenance(question);
    FakeSocket.last.say(failure);
    expect(session.store.value.graph!.ended).toBe("failed");
    session.readProvenance(question);
    FakeSocket.last.say({ type: "graph_begun", session: "a", run: session.store.value.graph!.run, graph: graphOf([node("target")], []) });
    FakeSocket.last.say(failure);
    expect(session.store.value.graph!.ended).toBeNull();
    FakeSocket.last.drop();
    expect(session.store.value.graph).toMatchObject({ ended: "lost", graph: { nodes: [{ id: "target" }] } });
  });

  it("that was cut short is asked again and says so when it is kept; a whole one outlives its connection", () => {
    const session = started();
    const graph = graphOf([node("target")], []);
    const ask = () => {
      session.readProvenance(question);
      FakeSocket.last.say({ type: "graph_begun", session: "a", run: session.store.value.graph!.run, graph });
    };
    ask();
    FakeSocket.last.say({ type: "state", state: "lost", code: "", message: "", hint: "", memory_bytes: 1, model: null });
    expect(answeredWhole(session.store.value.graph, question)).toBe(false);
    expect(keptGraph(session.store.value.graph!)!.notes).toHaveLength(1);
    FakeSocket.last.say({ type: "state", state: "ready", code: "", message: "", hint: "", memory_bytes: 1, model: null });
    FakeSocket.last.say({ type: "opened", session: "a", prompt: [], next: [], entropy: 1, milliseconds: 2, reopened: true });
    ask();
    FakeSocket.last.say({ type: "graph_ended", run: session.store.value.graph!.run, reason: "done" });
    FakeSocket.last.say({ type: "state", state: "lost", code: "", message: "", hint: "", memory_bytes: 1, model: null });
    expect(answeredWhole(session.store.value.graph, question)).toBe(true);
    expect(answeredWhole(session.store.value.graph, { ...question, hops: 1 })).toBe(false);
    expect(keptGraph(session.store.value.graph!)).toEqual(graph);
  });
});

describe("the SAEs that take part", () => {
  const sae = (fingerprint: string, layer: number, more = {}) => ({ id: fingerprint, fingerprint, state: "ready", site: "resid_post", layer, ...more });
  const all = [sae("a3", 3), sae("b3", 3), sae("a2", 2), sae("a5", 5), sae("broken", 1, { state: "failed" }), sae("z", 1, { site: "attn_z" })];
  const names = (given: Partial<typeof target>) => usualSaes(all, { ...target, ...given }).map(({ id }) => id);
  it("are one for each block below the target, and the target's own", () => {
    expect(names({})).toEqual(["a5", "a3", "a2"]);
    expect(names({ kind: "feature", sae: "b3", index: 1 })).toEqual(["b3", "a2"]);
    const transcoder = sae("t", 2, { params: { site_out: "mlp_out" } });
    expect(usualSaes([transcoder, ...all], target).map(({ id }) => id)).toEqual(["a5", "a3", "a2"]);
    expect([transcoder, { ...transcoder, site: "resid_mid" }, sae("m", 2, { site: "resid_mid" })].map(canTakePart)).toEqual([true, true, false]);
    expect(names({ kind: "attention", layer: 3, head: 0, key: 0 })).toEqual(["a2"]);
  });
});
