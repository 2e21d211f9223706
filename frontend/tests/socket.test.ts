import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { backoff, ReconnectingSocket } from "@/live/socket";
import { FakeSocket } from "./socketRig";

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  FakeSocket.made = [];
});
afterEach(() => vi.useRealTimers());

describe("a reconnecting socket", () => {
  const rig = () => {
    const seen: string[] = [];
    const socket = new ReconnectingSocket<{ type: string }, { type: string }>(
      "ws://x/",
      { onOpen: () => seen.push("ready"), onMessage: (message) => seen.push(message.type), onConnection: (state) => seen.push(state) },
      () => ({ type: "ping" }),
      { connect: FakeSocket.connect, random: () => 0.5 },
    );
    return { seen, socket };
  };

  it("waits longer after every failure, up to a limit, with jitter", () => {
    const middle = [0, 1, 2, 3].map((attempt) => backoff(attempt, 0.5));
    expect(middle).toEqual([300, 600, 1200, 2400]);
    expect(backoff(30, 1)).toBeLessThanOrEqual(15_000);
    expect(backoff(3, 0)).toBeLessThan(backoff(3, 1));
  });

  it("comes back after it was lost, and starts afresh with its patience", () => {
    const { seen } = rig();
    FakeSocket.last.open();
    FakeSocket.last.drop();
    expect(FakeSocket.made).toHaveLength(1);
    vi.advanceTimersByTime(300);
    expect(FakeSocket.made).toHaveLength(2);
    FakeSocket.last.drop();
    vi.advanceTimersByTime(599);
    expect(FakeSocket.made).toHaveLength(2);
    vi.advanceTimersByTime(1);
    FakeSocket.last.open();
    FakeSocket.last.drop();
    vi.advanceTimersByTime(300);
    expect(FakeSocket.made).toHaveLength(4);
    expect(seen.slice(0, 4)).toEqual(["connecting", "open", "ready", "lost"]);
  });

  it("does not come back when it was told to stay away", () => {
    const { seen } = rig();
    FakeSocket.last.open();
    FakeSocket.last.drop(4401);
    vi.advanceTimersByTime(60_000);
    expect(FakeSocket.made).toHaveLength(1);
    expect(seen.at(-1)).toBe("ended");
  });

  it("asks whether anybody is there, and leaves when nobody answers", () => {
    rig();
    const first = FakeSocket.last;
    first.open();
    vi.advanceTimersByTime(20_000);
    expect(first.of("ping")).toHaveLength(1);
    first.say({ type: "pong" });
    vi.advanceTimersByTime(45_000);
    expect(first.readyState).toBe(WebSocket.OPEN); // a busy machine answers late
    vi.advanceTimersByTime(10_000);
    expect(first.readyState).toBe(WebSocket.CLOSED);
    vi.advanceTimersByTime(1000);
    expect(FakeSocket.made).toHaveLength(2);
  });
});
