/** How a loaded model is run and where it can be read, in words. */

import type { Running } from "@/api/types";
import type { Fact } from "@/components/Facts";
import { siteWords } from "./sites";

const PATHS: Record<string, { name: string; meaning: string }> = {
  fast: { name: "the fast path", meaning: "the model’s weights, composed anew for speed" },
  general: { name: "the model’s own blocks", meaning: "called one by one" },
};

/** "the fast path", "the model’s own blocks": what computed an answer. */
export function pathName(path: string): string {
  return PATHS[path]?.name ?? path;
}

/** What that means, and why it is no faster way. */
export function pathMeaning(path: string, reason: string): string {
  const meaning = PATHS[path]?.meaning ?? "";
  return reason ? `${meaning} (${reason})` : meaning;
}

/** "0–3, 5": runs of consecutive numbers. */
export function ranges(numbers: readonly number[]): string {
  const runs: { from: number; to: number }[] = [];
  for (const n of numbers) {
    const last = runs.at(-1);
    if (last?.to === n - 1) last.to = n;
    else runs.push({ from: n, to: n });
  }
  return runs.map(({ from, to }) => (from === to ? String(from) : `${from}–${to}`)).join(", ");
}

/** What is known of a model once it is in memory. */
export function runningFacts(running: Running | null | undefined): Fact[] {
  if (!running) return [];
  const partly = running.sites.filter(({ reason }) => reason !== "");
  const exceptions = partly.map(({ kind, blocks, reason }) => `${kind} (${siteWords(kind)} a block): ${blocks.length > 0 ? `only in ${ranges(blocks)}` : "nowhere"}; ${reason}`);
  const facts: Fact[] = [{ label: "Run by", value: pathName(running.path), title: pathMeaning(running.path, running.reason) }];
  if (running.from_start) {
    facts.push({ label: "Recomputed", value: "from the first token", title: "its blocks keep a recurrent state, which cannot be cut at a position: every answer is computed from the start of the text" });
  }
  if (running.sites.length > 0) {
    const value = exceptions.length === 0 ? "all kinds" : `${running.sites.length - partly.length} of ${running.sites.length} kinds at every block`;
    facts.push({ label: "Sites", value, title: exceptions.join("\n") || "activations that can be recorded, at every block" });
  }
  return facts;
}
