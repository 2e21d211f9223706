/** Where edits act, in words, and positions as people type them. Pure functions. */

import type { Positions } from "./plan";

const MOST = 4096;

/** "4, 7-9" as sorted positions without repeats; null when it is something else. */
export function positionsOf(text: string): number[] | null {
  const found = new Set<number>();
  for (const part of text.split(/[\s,;]+/).filter(Boolean)) {
    const read = /^(\d{1,6})(?:[-–](\d{1,6}))?$/.exec(part);
    if (!read) return null;
    const first = Number(read[1]);
    const last = Number(read[2] ?? read[1]);
    if (last < first || last - first >= MOST) return null;
    for (let place = first; place <= last; place += 1) found.add(place);
  }
  return [...found].sort((a, b) => a - b);
}

/** "from token 4 on, special tokens and sinks too". */
export function positionWords(positions: Positions): string {
  const { mode, start, indices, include_sinks: sinks } = positions;
  const where = {
    all: "every token",
    from: `from token ${start} on`,
    set: `at ${indices.length === 1 ? "token" : "tokens"} ${indices.slice(0, 6).join(", ") || "none"}${indices.length > 6 ? ", …" : ""}`,
    generated: "only what is generated",
  }[mode];
  return sinks ? `${where}, special tokens and sinks too` : `${where}, sparing special tokens and sinks`;
}
