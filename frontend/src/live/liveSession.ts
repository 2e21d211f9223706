/** A session with a resident model: a prompt, a plan of edits, and the answers to both. */

import { randomId } from "@/api/client";
import type { EditPlan } from "@/api/types";
import { LatestWins } from "./latestWins";
import { startedContinuation, endedWith, extended, type Continuation, type GenerationOptions } from "./continuation";
import { grown, startedGraph, type GraphQuestion, type LiveGraph } from "./graph";
import type { AttentionExplained, Failure, FeatureValues, Generated, GenerationEnded, GraphBegun, GraphEnded, GraphProgress, LiveAnswer, LiveRequest, Opened, PositionShifts, ResidentMessage, Result } from "./messages";
import { CLOSED_TOO_MANY, ReconnectingSocket, socketUrl, type Connection, type SocketOptions } from "./socket";
import { FrameStore } from "./store";

/** How long an answer may take before the wait is given up, so that a lost one cannot block the lab. */
const PATIENCE = 20_000;

export interface LiveState {
  connection: Connection;
  /** Why the socket closed for good, when it did. */
  endedWith: number | null;
  /** The limit of live sessions is reached, so the portal has not let this one in yet. */
  atLimit: boolean;
  /** The socket was lost at least once and is back. */
  reconnected: boolean;
  resident: ResidentMessage | null;
  opened: Opened | null;
  opening: boolean;
  /** Requests of other people that are answered before the newest one of this page. */
  ahead: number;
  /** The prompt that is answered, or was asked about last. */
  prompt: string | null;
  result: Result | null;
  /** From sending the newest answered plan to its answer, in the browser's own clock. */
  roundTrip: number | null;
  /** The newest round-trips, oldest first. */
  roundTrips: readonly number[];
  /** What is shown does not answer the newest plan. */
  stale: boolean;
  failure: Failure | null;
  /** The text being written, or written last. */
  continuation: Continuation | null;
  /** KL at every position under the plan it names. */
  positions: PositionShifts | null;
  /** Activations on the prompt, by SAE fingerprint and feature index. */
  activations: Readonly<Record<string, Readonly<Record<number, readonly number[]>>>>;
  /** Places of the prompt that an SAE's token filter leaves out, by SAE. */
  leftOut: Readonly<Record<string, ReadonlySet<number>>>;
  /** The provenance graph being computed, or computed last. */
  graph: LiveGraph | null;
  /** Why a head attends from one position to another, asked for last. */
  attended: AttentionExplained["attended"] | null;
}

export const IDLE: LiveState = {
  connection: "connecting",
  endedWith: null,
  atLimit: false,
  reconnected: false,
  resident: null,
  opened: null,
  opening: false,
  ahead: 0,
  prompt: null,
  result: null,
  roundTrip: null,
  stale: false,
  failure: null,
  continuation: null,
  positions: null,
  activations: {},
  leftOut: {},
  graph: null,
  attended: null,
  roundTrips: [],
};

interface Reading {
  sae: string;
  /** Empty: the strongest. */
  indices: number[];
  top: number;
}

const REMEMBERED = 100;

export class LiveSession {
  readonly store = new FrameStore<LiveState>(IDLE);
  private socket: ReconnectingSocket<LiveAnswer, LiveRequest> | null = null;
  private readonly applies: LatestWins<EditPlan>;
  private prompt: string | null = null;
  /** The prompt was sent on this connection: from then on the portal reopens it by itself when it must. */
  private asked = false;
  private watchdog: ReturnType<typeof setTimeout> | null = null;
  private readings: Reading[] = [];
  private plan: EditPlan = { version: 2, edits: [] };
  private runs = 0;
  /** Identifies this page to the portal, so that a reconnection keeps its session. */
  private readonly page = randomId();

  /** @param top how many next tokens to ask for. */
  constructor(private readonly model: string, private readonly top = 12, private readonly options: SocketOptions = {}) {
    this.applies = new LatestWins((rev, plan) => this.transmit(rev, plan));
  }

  /** Connect, until the returned function is called; can be started again after that. */
  start(): () => void {
    this.socket = new ReconnectingSocket<LiveAnswer, LiveRequest>(
      socketUrl(`/ws/live/${this.model}/?page=${this.page}`),
      {
        // The portal says at once how the model is; that starts the session.
        onOpen: () => undefined,
        onMessage: (message) => this.receive(message),
        onConnection: (connection, code) => this.connection(connection, code),
      },
      () => ({ type: "ping" }),
      this.options,
    );
    return () => {
      if (this.watchdog) clearTimeout(this.watchdog);
      this.socket?.close();
      this.socket = null;
      this.connection("connecting");
    };
  }

  /** Start over with a prompt; the plan stays and is applied to it. */
  open(prompt: string): void {
    this.prompt = prompt;
    this.asked = false;
    this.readings = [];
    this.store.set({ prompt, opened: null, result: null, roundTrip: null, failure: null, activations: {}, leftOut: {}, continuation: null, positions: null, graph: null, attended: null });
    this.sendOpen();
  }

  /** Make this the plan; its answer will show in the store unless a newer plan overtakes it. */
  apply(plan: EditPlan): void {
    this.plan = plan;
    this.applies.submit(plan);
    this.store.set({ stale: this.applies.stale, failure: null });
  }

  /** Ask for the activations of some features on the prompt, unless they were asked for before. */
  readFeatures(sae: string, indices: readonly number[]): void {
    const asked = new Set(this.readings.flatMap((reading) => (reading.sae === sae ? reading.indices : [])));
    const missing = indices.filter((index) => !asked.has(index));
    if (missing.length > 0) this.addReading({ sae, indices: missing, top: 1 });
  }

  /** Ask for the features of an SAE that fire most on the prompt. */
  readStrongest(sae: string, top: number): void {
    const asked = this.readings.some((reading) => reading.sae === sae && reading.indices.length === 0 && reading.top >= top);
    if (!asked) this.addReading({ sae, indices: [], top });
  }

  /** Continue the prompt, unpatched and patched; changes of the plan show from the next token on. */
  generate(options: GenerationOptions): void {
    if (!this.ready) return;
    this.runs += 1;
    const { seed, temperature, tokens } = options;
    const sent = this.socket?.send({ type: "generate", run: this.runs, plan: this.plan, seed, temperature, max_tokens: tokens });
    if (sent) this.store.set({ continuation: startedContinuation(this.runs, this.clock()), failure: null });
  }

  /** End the continuation. */
  stopGeneration(): void {
    this.socket?.send({ type: "stop_generation" });
  }

  /** Ask how far the plan moves every position of the prompt. */
  readPositions(): void {
    if (this.ready) this.socket?.send({ type: "read_positions", plan: this.plan });
  }

  /** Ask where something comes from; what is known of it shows in the store as it is found. */
  readProvenance(question: GraphQuestion): void {
    if (!this.ready) return;
    this.runs += 1;
    if (this.socket?.send({ type: "read_provenance", run: this.runs, ...question })) {
      this.store.set({ graph: startedGraph(this.runs, question), failure: null });
    }
  }

  /** End the graph that is being computed. */
  stopProvenance(): void {
    this.socket?.send({ type: "stop_provenance" });
  }

  /** Ask why a head attends from a position to another. */
  readAttended(at: { layer: number; head: number; query: number; key: number }, saes: readonly string[], top = 20): void {
    if (!this.ready) return;
    this.store.set({ attended: null, failure: null });
    this.socket?.send({ type: "read_attended", ...at, saes: [...saes], top });
  }

  /** Try to reconnect now. */
  retryNow(): void {
    this.socket?.retryNow();
  }

  private get ready(): boolean {
    return this.store.value.opened !== null;
  }

  private sendOpen(): void {
    // A model that is not loaded has nothing to open; the session starts when it says it is ready.
    if (this.prompt === null || this.asked || this.store.value.resident?.state !== "ready") return;
    this.asked = this.socket?.send({ type: "open", prompt: this.prompt, top: this.top }) ?? false;
    this.applies.disconnected();
    this.store.set({ opened: null, opening: this.asked });
  }

  private addReading(reading: Reading): void {
    this.readings.push(reading);
    this.sendReading(reading);
  }

  private sendReading({ sae, indices, top }: Reading): void {
    if (this.ready) this.socket?.send({ type: "read_features", sae, indices, top });
  }

  private transmit(rev: number, plan: EditPlan): boolean {
    if (!this.ready || !this.socket?.send({ type: "apply", rev, plan, top: this.top, pinned: [] })) return false;
    this.watch(rev);
    return true;
  }

  /** Give the answer up when nothing is heard of it for long. One that comes after all is still shown. */
  private watch(rev: number): void {
    if (this.watchdog) clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => {
      if (!this.applies.waits) return;
      this.store.set({
        failure: { type: "failure", code: "no_answer", message: "The model has not answered for 20 seconds.", hint: "Its answer shows when it comes; change something to ask again.", rev },
      });
      this.applies.dropped(rev);
    }, PATIENCE);
  }

  private connection(connection: Connection, code?: number): void {
    const before = this.store.value.connection;
    if (connection !== "open") {
      this.asked = false;
      this.applies.disconnected();
      this.lose();
      // What the server says about the model is not known until it says it again.
      this.store.set({ opened: null, opening: false, resident: null });
    }
    this.store.set({
      connection,
      endedWith: connection === "ended" ? (code ?? 0) : null,
      atLimit: code === CLOSED_TOO_MANY || (this.store.value.atLimit && connection !== "ended"),
      reconnected: connection === "open" && (before === "lost" || this.store.value.reconnected),
    });
  }

  private receive(message: LiveAnswer): void {
    switch (message.type) {
      case "state":
        this.residentChanged(message);
        break;
      case "opened":
        this.store.set({ opened: message, opening: false, ahead: 0, failure: null });
        this.applies.reconnected();
        for (const reading of this.readings) this.sendReading(reading);
        break;
      case "result":
        this.answered(message);
        break;
      case "queued":
        this.store.set({ ahead: message.ahead });
        // It waits for others: it is not lost.
        if (message.rev !== null && this.applies.waits) this.watch(message.rev);
        break;
      case "superseded":
        this.applies.dropped(message.rev);
        break;
      case "features":
        this.keep(message.sae, message.features, message.left_out);
        break;
      case "position_shifts":
        if (message.session === this.store.value.opened?.session) this.store.set({ positions: message });
        break;
      case "generated":
      case "generation_ended":
        this.written(message);
        break;
      case "graph_begun":
      case "graph_update":
      case "graph_ended":
        this.explained(message);
        break;
      case "attended":
        if (message.session === this.store.value.opened?.session) this.store.set({ attended: message.attended });
        break;
      case "failure":
        this.failed(message);
        break;
      case "attached": // asked for by a program; what this page needs is attached by its own questions
      case "pong":
        break;
    }
  }

  private residentChanged(resident: ResidentMessage): void {
    this.store.set({ resident, ahead: 0, atLimit: false });
    if (resident.state === "ready") {
      this.sendOpen();
    } else {
      this.applies.disconnected();
      this.lose();
      this.store.set({ opened: null, opening: false });
    }
  }

  /** A text that was being written and a graph that was being computed end with its connection or its model. */
  private lose(): void {
    const { continuation, graph } = this.store.value;
    if (continuation?.ended === null) this.store.set({ continuation: endedWith(continuation, "lost") });
    if (graph?.ended === null) this.store.set({ graph: { ...graph, ended: "lost" } });
  }

  private answered(result: Result): void {
    if (result.session === this.store.value.opened?.session) {
      const roundTrip = this.applies.answered(result.rev);
      if (roundTrip !== null) {
        const roundTrips = [...this.store.value.roundTrips, roundTrip].slice(-REMEMBERED);
        this.store.set({ result, roundTrip, roundTrips, failure: null });
      }
    } else {
      this.applies.dropped(result.rev); // about the prompt before
    }
    this.store.set({ stale: this.applies.stale, ahead: 0 });
  }

  private keep(sae: string, features: readonly FeatureValues[], leftOut: readonly number[]): void {
    const known = { ...this.store.value.activations[sae] };
    for (const feature of features) known[feature.index] = feature.values;
    this.store.set({
      activations: { ...this.store.value.activations, [sae]: known },
      leftOut: { ...this.store.value.leftOut, [sae]: new Set(leftOut) },
    });
  }

  private written(message: Generated | GenerationEnded): void {
    const now = this.store.value.continuation;
    if (now?.run !== message.run) return; // of a run that was replaced
    const next = message.type === "generated" ? extended(now, message, this.clock()) : endedWith(now, message.reason);
    this.store.set({ continuation: next });
  }

  private explained(message: GraphBegun | GraphProgress | GraphEnded): void {
    const now = this.store.value.graph;
    if (now?.run !== message.run) return; // of a run that was replaced
    const next =
      message.type === "graph_begun" ? { ...now, graph: message.graph } : message.type === "graph_update" ? grown(now, message.update) : { ...now, ended: message.reason };
    this.store.set({ graph: next, ahead: 0 });
  }

  private clock(): number {
    return performance.now();
  }

  private failed(failure: Failure): void {
    const { graph } = this.store.value;
    this.store.set({ failure, opening: false, ahead: 0 });
    // A graph of which nothing came was refused.
    if (graph?.ended === null && graph.graph === null) this.store.set({ graph: { ...graph, ended: "failed" } });
    if (failure.rev !== null) this.applies.dropped(failure.rev);
    this.store.set({ stale: this.applies.stale });
  }
}

/** Features by their strongest activation on the prompt. */
export function strongestFirst(activations: Readonly<Record<number, readonly number[]>>): { index: number; values: readonly number[]; strongest: number }[] {
  return Object.entries(activations)
    .map(([index, values]) => ({ index: Number(index), values, strongest: Math.max(0, ...values) }))
    .filter((feature) => feature.strongest > 0)
    .sort((a, b) => b.strongest - a.strongest);
}
