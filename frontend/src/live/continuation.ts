/** Text that a model writes, unpatched and patched, as it arrives. */

import type { Generated } from "./messages";

/** How the text is to be drawn. */
export interface GenerationOptions {
  seed: number;
  /** 0 takes the likeliest token. */
  temperature: number;
  tokens: number;
}

export interface Continuation {
  run: number;
  base: string;
  patched: string;
  count: number;
  /** Tokens per second, each in both columns; null before the second. */
  rate: number | null;
  /** Fingerprint of the plan in force at the newest token. */
  plan: string;
  /** Why it is over; null while it goes on. */
  ended: string | null;
  startedAt: number;
  firstAt: number | null;
}

/** A text of which nothing is written yet. */
export function startedContinuation(run: number, now: number): Continuation {
  return { run, base: "", patched: "", count: 0, rate: null, plan: "", ended: null, startedAt: now, firstAt: null };
}

/** The text with the next token of both columns. */
export function extended(text: Continuation, next: Generated, now: number): Continuation {
  const firstAt = text.firstAt ?? now;
  const seconds = (now - firstAt) / 1000;
  return {
    ...text,
    base: text.base + (next.base?.text ?? ""),
    patched: text.patched + (next.patched?.text ?? ""),
    count: next.number + 1,
    plan: next.plan,
    firstAt,
    rate: seconds > 0 ? text.count / seconds : null,
  };
}

export function endedWith(text: Continuation, reason: string): Continuation {
  return { ...text, ended: reason };
}

const REASONS: Record<string, string> = {
  tokens: "as long as asked for",
  end_of_text: "both texts ended by themselves",
  context: "the model's context is full",
  stopped: "stopped",
  replaced: "replaced by a newer one",
  failed: "the model failed",
  lost: "the model was lost",
};

/** Where a text stands, in words. */
export function progressWords(text: Continuation): string {
  const tokens = `${text.count} ${text.count === 1 ? "token" : "tokens"}`;
  const rate = text.rate === null ? "" : `, ${text.rate.toFixed(1)} tokens/s`;
  if (text.ended === null) return text.count === 0 ? "Writing…" : `Writing… ${tokens}${rate}`;
  return `${tokens}${rate}: ${REASONS[text.ended] ?? text.ended}.`;
}

/** Length of the part two texts share from the start. */
export function sharedLength(a: string, b: string): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length += 1;
  return length;
}
