import { QueryClient } from "@tanstack/react-query";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { EditPlan, Job, JobEvent } from "@/api/types";
import { startedContinuation, endedWith, extended, progressWords, sharedLength } from "@/live/continuation";
import { JobsFeed } from "@/live/jobsFeed";
import { addEvents, JobCache, NO_EVENTS, withJob } from "@/live/jobCache";
import { LiveSession, strongestFirst } from "@/live/liveSession";
import { FakeSocket } from "./socketRig";

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "requestAnimationFrame", "cancelAnimationFrame", "performance"] });
  FakeSocket.made = [];
});
afterEach(() => vi.useRealTimers());

const plan = (strength: number): EditPlan => ({
  version: 1,
  edits: [{
    kind: "scale", site: "resid_post.3", feature: { sae: "s", index: 1 }, sae: "", adapter: "", modules: [], strength, unit: "raw", unit_value: 1,
    positions: { mode: "all", start: 0, indices: [], include_sinks: false }, enabled: true,
  }],
});
const ready = { type: "state", state: "ready", code: "", message: "", hint: "", memory_bytes: 1, model: null };
const opened = { type: "opened", session: "a", prompt: [], next: [], entropy: 1, milliseconds: 2, reopened: false };
const result = (rev: number) => ({
  type: "result", session: "a", rev, tokens: [], kl: rev, entropy_base: 1, entropy_patched: 1, server_ms: 3,
  receipt: { plan: "p", edits: [], baseline: "b", reused: "computed", first_layer: 3, first_position: 0, path: "fast" },
  timings: { queued: 0, compute: 1 },
});

describe("a continuation", () => {
  const piece = (text: string) => ({ token: 1, text, probability: 0.5 });
  const token = (number: number, base: string, patched: string | null) => ({
    type: "generated" as const, session: "a", run: 1, number, plan: "p", base: piece(base), patched: patched === null ? null : piece(patched),
  });
  it("grows in both columns until it ends, and says why", () => {
    let text = startedContinuation(1, 0);
    expect(progressWords(text)).toBe("Writing…");
    text = extended(text, token(0, " a", " a"), 100);
    text = extended(text, token(1, " b", " c"), 600);
    text = extended(text, token(2, " d", null), 1100);
    expect(text).toMatchObject({ base: " a b d", patched: " a c", count: 3, rate: 2 });
    expect(progressWords(text)).toBe("Writing… 3 tokens, 2.0 tokens/s");
    expect(progressWords(endedWith(text, "context"))).toContain("context is full");
  });
  it("knows where the columns part", () => {
    expect(sharedLength("abcd", "abxd")).toBe(2);
    expect(sharedLength("", "a")).toBe(0);
    expect(sharedLength("same", "same")).toBe(4);
  });
});

describe("a live session", () => {
  const start = () => {
    const session = new LiveSession("m", 12, { connect: FakeSocket.connect, random: () => 0.5 });
    session.open("Hello");
    session.start();
    FakeSocket.last.open();
    return session;
  };
  const shown = (session: LiveSession) => {
    vi.advanceTimersByTime(50);
    return session.store.getSnapshot();
  };

  it("writes on in two columns, and takes no token of a run that was replaced", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(2));
    session.generate({ seed: 3, temperature: 0.5, tokens: 20 });
    session.generate({ seed: 4, temperature: 0, tokens: 5 });
    expect(FakeSocket.last.of("generate")).toMatchObject([
      { run: 1, seed: 3, temperature: 0.5, max_tokens: 20, plan: plan(2) }, { run: 2, seed: 4, max_tokens: 5 },
    ]);
    const piece = (text: string) => ({ token: 1, text, probability: 1 });
    const generated = (run: number, text: string) => ({ type: "generated", session: "a", run, number: 0, plan: "p", base: piece(text), patched: piece(text) });
    FakeSocket.last.say(generated(1, "old"));
    FakeSocket.last.say({ type: "generation_ended", run: 1, reason: "replaced" });
    FakeSocket.last.say(generated(2, "new"));
    expect(shown(session).continuation).toMatchObject({ run: 2, base: "new", ended: null });
    session.stopGeneration();
    expect(FakeSocket.last.of("stop_generation")).toHaveLength(1);
    FakeSocket.last.say({ ...ready, state: "lost" });
    expect(shown(session).continuation).toMatchObject({ ended: "lost" });
  });

  it("opens its prompt once the model is ready, and applies the plan once the session is open", () => {
    const session = start();
    session.apply(plan(2));
    expect(FakeSocket.last.sent).toEqual([]);
    FakeSocket.last.say({ ...ready, state: "starting" });
    expect(FakeSocket.last.sent).toEqual([]);
    FakeSocket.last.say(ready);
    expect(FakeSocket.last.of("open")).toMatchObject([{ prompt: "Hello" }]);
    expect(FakeSocket.last.of("apply")).toHaveLength(0);
    FakeSocket.last.say(opened);
    expect(FakeSocket.last.of("apply")).toHaveLength(1);
    expect(FakeSocket.last.of("apply")[0]).toMatchObject({ plan: plan(2) });
  });

  it("keeps one apply in flight while a slider is dragged, then sends the newest", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    for (let step = 1; step <= 50; step++) session.apply(plan(step));
    const [first] = FakeSocket.last.of("apply");
    expect(FakeSocket.last.of("apply")).toHaveLength(1);
    FakeSocket.last.say(result(first!.rev as number));
    expect(FakeSocket.last.of("apply")).toHaveLength(2);
    expect(FakeSocket.last.of("apply")[1]).toMatchObject({ plan: plan(50) });
    expect(shown(session)).toMatchObject({ stale: true });
    FakeSocket.last.say(result(FakeSocket.last.of("apply")[1]!.rev as number));
    expect(shown(session)).toMatchObject({ stale: false, result: { rev: FakeSocket.last.of("apply")[1]!.rev } });
  });

  it("does not show an answer that is older than what is shown", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    session.apply(plan(2));
    FakeSocket.last.say(result(1));
    FakeSocket.last.say(result(2));
    FakeSocket.last.say(result(1));
    expect(shown(session).result?.rev).toBe(2);
  });

  it("paints once per frame, however many answers arrive in it", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    shown(session);
    const painted = vi.fn();
    session.store.subscribe(painted);
    for (let step = 1; step <= 20; step++) {
      session.apply(plan(step));
      FakeSocket.last.say(result(step));
    }
    expect(painted).not.toHaveBeenCalled();
    expect(shown(session).result?.rev).toBe(20);
    expect(painted).toHaveBeenCalledTimes(1);
  });

  it("opens, applies and reads again after the connection was lost", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    FakeSocket.last.say(result(1));
    session.readFeatures("s", [1, 2]);
    session.readFeatures("s", [2, 1]);
    expect(FakeSocket.last.of("read_features")).toHaveLength(1);
    session.apply(plan(7));
    FakeSocket.last.drop();
    expect(shown(session)).toMatchObject({ connection: "lost", opened: null, stale: true });
    vi.advanceTimersByTime(1000);
    const second = FakeSocket.last;
    second.open();
    second.say(ready);
    expect(second.of("open")).toMatchObject([{ prompt: "Hello" }]);
    second.say(opened);
    expect(second.of("apply")).toMatchObject([{ plan: plan(7) }]);
    expect(second.of("apply")[0]!.rev).toBeGreaterThan(2);
    expect(second.of("read_features")).toMatchObject([{ sae: "s", indices: [1, 2] }]);
    expect(shown(session)).toMatchObject({ connection: "open", reconnected: true });
  });

  it("names itself, so that its place is given back when it connects again", () => {
    const uuid = /\?page=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
    start();
    const first = FakeSocket.last;
    expect(first.url).toMatch(uuid);
    first.drop();
    vi.advanceTimersByTime(1000);
    expect(FakeSocket.last).not.toBe(first);
    expect(FakeSocket.last.url).toBe(first.url);
    start();
    expect(FakeSocket.last.url).not.toBe(first.url);
  });

  it("waits outside while all live sessions are taken, and comes in by itself", () => {
    const session = start();
    const failure = { type: "failure", code: "quota_live_sessions", message: "1 of 1.", hint: "", rev: null };
    for (let time = 1; time <= 3; time++) {
      FakeSocket.last.say(failure);
      FakeSocket.last.drop(4429);
      expect(shown(session)).toMatchObject({ connection: "lost", atLimit: true, failure: { message: "1 of 1." } });
      vi.advanceTimersByTime(3000); // it opens before it is refused, which says nothing about how soon to ask again
      expect(FakeSocket.made).toHaveLength(time);
      vi.advanceTimersByTime(1000);
      expect(FakeSocket.made).toHaveLength(time + 1);
      FakeSocket.last.open();
      expect(shown(session)).toMatchObject({ atLimit: true });
    }
    FakeSocket.last.say(ready);
    expect(shown(session)).toMatchObject({ atLimit: false });
    FakeSocket.last.say(opened);
    expect(shown(session)).toMatchObject({ atLimit: false, failure: null });
  });

  it("starts over by itself when the model's process died and came back", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(3));
    FakeSocket.last.say({ ...ready, state: "lost", message: "The process ended." });
    expect(shown(session)).toMatchObject({ opened: null, resident: { state: "lost" } });
    FakeSocket.last.say(ready);
    // The portal reopens by itself: asking too would make two sessions.
    expect(FakeSocket.last.of("open")).toHaveLength(1);
    FakeSocket.last.say({ ...opened, session: "b", reopened: true });
    expect(FakeSocket.last.of("apply").at(-1)).toMatchObject({ plan: plan(3) });
    expect(FakeSocket.last.of("apply").at(-1)!.rev).toBeGreaterThan(1);
  });

  it("ignores an answer about the prompt before, and is not held up by it", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    session.open("Another prompt");
    expect(FakeSocket.last.of("open").at(-1)).toMatchObject({ prompt: "Another prompt" });
    FakeSocket.last.say({ ...opened, session: "b" });
    FakeSocket.last.say(result(1));
    expect(shown(session).result).toBeNull();
    const newest = FakeSocket.last.of("apply").at(-1)!;
    FakeSocket.last.say({ ...result(newest.rev as number), session: "b" });
    expect(shown(session).result?.rev).toBe(newest.rev);
  });

  it("goes on after a refused plan, and says why", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    session.apply(plan(2));
    FakeSocket.last.say({ type: "failure", code: "layer_out_of_range", message: "No.", hint: "", rev: 1 });
    expect(shown(session).failure?.code).toBe("layer_out_of_range");
    expect(FakeSocket.last.of("apply")).toHaveLength(2);
    FakeSocket.last.say(result(2));
    expect(shown(session)).toMatchObject({ failure: null, stale: false });
  });

  it("is not blocked for ever by an answer that never comes", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    for (let second = 0; second < 21; second++) {
      vi.advanceTimersByTime(1000);
      FakeSocket.last.say({ type: "pong" });
    }
    expect(session.store.value.failure?.code).toBe("no_answer");
    session.apply(plan(2));
    expect(FakeSocket.last.of("apply")).toHaveLength(2);
  });

  it("shows an answer that comes after all, with the time it took", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    for (let second = 0; second < 25; second++) {
      vi.advanceTimersByTime(1000);
      FakeSocket.last.say({ type: "pong" });
    }
    FakeSocket.last.say(result(1));
    expect(shown(session)).toMatchObject({ failure: null, stale: false });
    expect(session.store.value.roundTrip).toBeGreaterThanOrEqual(25_000);
  });

  it("does not call an answer lost that waits for others", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    session.apply(plan(1));
    for (let second = 0; second < 45; second++) {
      vi.advanceTimersByTime(1000);
      FakeSocket.last.say({ type: "queued", ahead: 3, rev: 1 });
    }
    expect(shown(session)).toMatchObject({ failure: null, ahead: 3 });
    FakeSocket.last.say(result(1));
    expect(shown(session)).toMatchObject({ stale: false, ahead: 0 });
    expect(session.store.value.roundTrip).toBeGreaterThanOrEqual(45_000);
  });

  it("can be stopped and started again, as React does", () => {
    const session = new LiveSession("m", 12, { connect: FakeSocket.connect });
    session.start()();
    session.start();
    session.open("Hello");
    session.apply(plan(4));
    expect(FakeSocket.made).toHaveLength(2);
    expect(FakeSocket.made[0]!.readyState).toBe(WebSocket.CLOSED);
    FakeSocket.last.open();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    expect(FakeSocket.last.of("apply")).toMatchObject([{ plan: plan(4) }]);
  });

  it("collects activations by SAE and feature", () => {
    const session = start();
    FakeSocket.last.say(ready);
    FakeSocket.last.say(opened);
    FakeSocket.last.say({ type: "features", session: "a", sae: "s", features: [{ index: 4, values: [0, 1] }], left_out: [0] });
    FakeSocket.last.say({ type: "features", session: "a", sae: "s", features: [{ index: 5, values: [2, 0] }], left_out: [0] });
    expect(shown(session).activations).toEqual({ s: { 4: [0, 1], 5: [2, 0] } });
    expect(shown(session).leftOut).toEqual({ s: new Set([0]) });
    expect(strongestFirst(shown(session).activations.s!).map((feature) => feature.index)).toEqual([5, 4]);
    session.open("Another prompt");
    expect(shown(session).activations).toEqual({});
    expect(shown(session).leftOut).toEqual({});
  });
});

// --- jobs --------------------------------------------------------------------------------------------

const job = (more: Partial<Job>): Job => ({
  id: "0002", project: "p", kind: "train", title: "Train", subject_type: "sae", subject_id: "s", state: "running", attempt: 1,
  max_attempts: 3, phase: "", done: 0, total: null, unit: "", rate: null, eta_seconds: null, metrics: {}, priority: 0, after: null, pipeline: null, starts_in_seconds: null, lasts_seconds: null, cloneable: false, error: null,
  created_by: null, worker: null, artifact: null, queue_position: 0, created_at: "", started_at: null, finished_at: null, heartbeat_at: null,
  stalled: false, cancellable: true, retryable: false, seq: 1, ...more,
});
const event = (seq: number): JobEvent => ({ seq, at: "", attempt: 1, kind: "log", level: "info", message: String(seq), data: {} });

describe("what is known of jobs", () => {
  it("notices a missed change, takes the news nevertheless, and ignores what is old", () => {
    const ledger = new JobCache();
    ledger.snapshot([job({ seq: 3 })]);
    expect(ledger.change(job({ seq: 4 }), false)).toBe("applied");
    expect(ledger.change(job({ seq: 4, done: 5 }), true)).toBe("applied");
    expect(ledger.change(job({ seq: 7, done: 9 }), false)).toBe("gap");
    expect(ledger.get("0002")?.done).toBe(9);
    expect(ledger.change(job({ seq: 7 }), false)).toBe("old");
    expect(ledger.change(job({ seq: 5 }), true)).toBe("old");
    expect(ledger.change(job({ id: "0003", seq: 1 }), false)).toBe("new");
  });
  it("does not let a late snapshot undo a change", () => {
    const ledger = new JobCache();
    ledger.change(job({ seq: 5, state: "succeeded" }), false);
    ledger.snapshot([job({ seq: 4 })]);
    expect(ledger.get("0002")?.state).toBe("succeeded");
  });
  it("joins pieces of a history and notices a hole in what is pushed", () => {
    const first = addEvents(NO_EVENTS, [event(1), event(3)], true);
    expect(first.gap).toBe(false);
    const repeated = addEvents(first.log, [event(3), event(4)], false);
    expect(repeated.log.events.map((one) => one.seq)).toEqual([1, 3, 4]);
    const hole = addEvents(repeated.log, [event(6)], false);
    expect(hole.gap).toBe(true);
    expect(hole.log.last).toBe(4);
  });
  it("replaces a job in a list or puts it where its age belongs", () => {
    const list = [job({ id: "0005" }), job({ id: "0002" })];
    expect(withJob(list, job({ id: "0002", done: 3 }))[1]!.done).toBe(3);
    expect(withJob(list, job({ id: "0003" })).map((one) => one.id)).toEqual(["0005", "0003", "0002"]);
    expect(withJob(list, job({ id: "0001" })).map((one) => one.id)).toEqual(["0005", "0002", "0001"]);
  });
});

describe("the jobs feed", () => {
  const rig = () => {
    const queries = new QueryClient();
    const feed = new JobsFeed(queries, { connect: FakeSocket.connect, random: () => 0.5 });
    return { queries, feed };
  };

  it("puts news into every list that shows the job, and asks for a snapshot after a gap", () => {
    const { queries, feed } = rig();
    queries.setQueryData(["jobs", {}], []);
    queries.setQueryData(["jobs", { project: "p" }], []);
    queries.setQueryData(["jobs", { project: "other" }], []);
    queries.setQueryData(["jobs", "0002"], { job: job({}), params: { k: 32 } });
    feed.follow("p");
    const socket = FakeSocket.last;
    socket.open();
    socket.say({ type: "snapshot", project: "p", jobs: [job({ seq: 1 })] });
    socket.say({ type: "job", job: job({ seq: 2, done: 10 }), transient: false });
    expect(queries.getQueryData(["jobs", {}])).toMatchObject([{ done: 10 }]);
    expect(queries.getQueryData(["jobs", { project: "p" }])).toMatchObject([{ done: 10 }]);
    expect(queries.getQueryData(["jobs", { project: "other" }])).toEqual([]);
    expect(queries.getQueryData(["jobs", "0002"])).toMatchObject({ job: { done: 10 }, params: { k: 32 } });
    const before = socket.of("subscribe").length;
    socket.say({ type: "job", job: job({ seq: 9 }), transient: false });
    expect(socket.of("subscribe")).toHaveLength(before + 1);
  });

  it("lets no late answer put back what has changed since it was asked for", async () => {
    const { queries, feed } = rig();
    feed.follow("p");
    FakeSocket.last.open();
    let answer: ((jobs: unknown) => void) | undefined;
    const asked = queries.query({ queryKey: ["jobs", { project: "p" }], queryFn: () => new Promise((resolve) => (answer = resolve)) });
    FakeSocket.last.say({ type: "job", job: job({ seq: 5, state: "succeeded", artifact: "a" }), transient: false });
    answer?.([job({ seq: 3, state: "running" })]);
    await asked;
    expect(queries.getQueryData(["jobs", { project: "p" }])).toMatchObject([{ seq: 5, state: "succeeded", artifact: "a" }]);
    await queries.query({ queryKey: ["jobs", "0002"], queryFn: () => ({ job: job({ seq: 4 }), params: {} }) });
    expect(queries.getQueryData(["jobs", "0002"])).toMatchObject({ job: { seq: 5 } });
    await queries.query({ queryKey: ["jobs", "0002"], queryFn: () => ({ job: job({ seq: 6 }), params: {} }) });
    expect(queries.getQueryData(["jobs", "0002"])).toMatchObject({ job: { seq: 6 } });
  });

  it("has results loaded again when a job ends, and only then", () => {
    const { queries, feed } = rig();
    const invalidated = vi.spyOn(queries, "invalidateQueries");
    feed.follow("p");
    FakeSocket.last.open();
    FakeSocket.last.say({ type: "snapshot", project: "p", jobs: [job({ seq: 1 })] });
    FakeSocket.last.say({ type: "job", job: job({ seq: 1, done: 3 }), transient: true });
    expect(invalidated).not.toHaveBeenCalled();
    FakeSocket.last.say({ type: "job", job: job({ seq: 2, state: "succeeded" }), transient: false });
    expect(invalidated.mock.calls.map(([filters]) => filters?.queryKey?.[0])).toContain("saes");
  });

  it("follows again after a reconnect, and each history from where it stopped", () => {
    const { feed } = rig();
    feed.follow("p");
    feed.watch("0002");
    FakeSocket.last.open();
    FakeSocket.last.say({ type: "events", job: "0002", events: [event(1), event(2)], last: 2 });
    FakeSocket.last.drop();
    vi.advanceTimersByTime(1000);
    FakeSocket.last.open();
    expect(FakeSocket.last.of("subscribe")).toMatchObject([{ project: "p" }]);
    expect(FakeSocket.last.of("watch")).toMatchObject([{ job: "0002", after: 2 }]);
    FakeSocket.last.say({ type: "events", job: "0002", events: [event(5)], last: 5 });
    FakeSocket.last.say({ type: "events", job: "0002", events: [event(8)], last: 8 });
    expect(FakeSocket.last.of("watch").at(-1)).toMatchObject({ after: 5 });
    expect(feed.logOf("0002").value.log.events.map((one) => one.seq)).toEqual([1, 2, 5]);
  });

  it("closes its socket when nobody follows anything any more", () => {
    const { feed } = rig();
    const stop = feed.follow("p");
    const stopToo = feed.follow("p");
    FakeSocket.last.open();
    stop();
    expect(FakeSocket.last.readyState).toBe(WebSocket.OPEN);
    stopToo();
    expect(FakeSocket.last.readyState).toBe(WebSocket.CLOSED);
  });
});
