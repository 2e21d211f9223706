import { describe, expect, it } from "vitest";
import { LatestWins } from "@/live/latestWins";

function rig() {
  const wire: [number, string][] = [];
  let up = true;
  let now = 0;
  const stream = new LatestWins<string>(
    (rev, payload) => {
      if (!up) return false;
      wire.push([rev, payload]);
      return true;
    },
    () => now,
  );
  return { wire, stream, cut: () => (up = false), mend: () => (up = true), wait: (ms: number) => (now += ms) };
}

describe("LatestWins", () => {
  it("sends the first state at once and only the newest of those that came meanwhile", () => {
    const { wire, stream } = rig();
    for (const state of ["a", "b", "c", "d"]) stream.submit(state);
    expect(wire).toEqual([[1, "a"]]);
    expect(stream.answered(1)).not.toBeNull();
    expect(wire).toEqual([[1, "a"], [4, "d"]]);
    expect(stream.answered(4)).not.toBeNull();
    expect(wire).toHaveLength(2);
  });

  it("shows the newest state in the end, whatever the order of submissions and answers", () => {
    for (let seed = 1; seed <= 200; seed++) {
      let random = seed;
      const next = () => (random = (random * 1103515245 + 12345) % 2147483648) / 2147483648;
      const { wire, stream } = rig();
      let shown = 0;
      let answeredUpTo = 0;
      const answer = () => {
        const rev = wire[answeredUpTo]![0];
        answeredUpTo += 1;
        if (next() < 0.2) {
          stream.dropped(rev);
        } else if (stream.answered(rev) !== null) {
          expect(rev).toBeGreaterThan(shown);
          shown = rev;
        }
      };
      for (let step = 0; step < 60; step++) {
        if (next() < 0.6) stream.submit(String(step));
        else if (answeredUpTo < wire.length) answer();
        expect(wire.length - answeredUpTo).toBeLessThanOrEqual(1);
      }
      const submitted = stream.submit("last");
      while (answeredUpTo < wire.length) {
        const rev = wire[answeredUpTo]![0];
        answeredUpTo += 1;
        if (stream.answered(rev) !== null) shown = rev;
      }
      expect(wire.at(-1)).toEqual([submitted, "last"]);
      expect(shown).toBe(submitted);
      expect(stream.stale).toBe(false);
    }
  });

  it("refuses answers that are older than what is shown, repeated, or were never asked for", () => {
    const { stream } = rig();
    stream.submit("a");
    expect(stream.answered(1)).not.toBeNull();
    expect(stream.answered(1)).toBeNull();
    expect(stream.answered(99)).toBeNull();
    expect(stream.answered(0)).toBeNull();
  });

  it("measures the round-trip from sending, not from submitting", () => {
    const { stream, wait } = rig();
    stream.submit("a");
    wait(50);
    stream.submit("b");
    wait(30);
    expect(stream.answered(1)).toBe(80);
    wait(20);
    expect(stream.answered(2)).toBe(20);
  });

  it("is stale from submission to the newest answer", () => {
    const { stream } = rig();
    expect(stream.stale).toBe(false);
    stream.submit("a");
    stream.submit("b");
    expect(stream.stale).toBe(true);
    stream.answered(1);
    expect(stream.stale).toBe(true);
    stream.answered(2);
    expect(stream.stale).toBe(false);
  });

  it("asks again for the newest state after a reconnect, under a higher revision", () => {
    const { wire, stream, cut, mend } = rig();
    stream.submit("a");
    stream.submit("b");
    stream.disconnected();
    cut();
    stream.submit("c");
    expect(wire).toHaveLength(1);
    mend();
    stream.reconnected();
    expect(wire.at(-1)).toEqual([4, "c"]);
    expect(stream.answered(1)).toBeNull(); // asked on the connection before
    expect(stream.answered(4)).not.toBeNull();
  });

  it("times an answer that was given up by when its own request was sent", () => {
    let now = 0;
    const stream = new LatestWins<string>(() => true, () => now);
    stream.submit("a");
    now = 100;
    stream.dropped(1);
    stream.submit("b");
    now = 150;
    expect(stream.answered(1)).toBe(150);
    expect(stream.answered(2)).toBe(50);
    expect(stream.answered(1)).toBeNull();
  });

  it("goes on after a refusal, even one that names no revision", () => {
    const { wire, stream } = rig();
    stream.submit("a");
    stream.submit("b");
    stream.dropped(null);
    expect(wire).toEqual([[1, "a"], [2, "b"]]);
    stream.dropped(2);
    stream.submit("c");
    expect(wire.at(-1)).toEqual([3, "c"]);
  });

  it("stays stale when the newest state was refused: what is shown answers something else", () => {
    const { stream } = rig();
    stream.submit("a");
    stream.answered(1);
    stream.submit("b");
    stream.dropped(2);
    expect(stream.stale).toBe(true);
  });
});
