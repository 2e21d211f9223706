import type { Edit, EditKind } from "@/api/types";
import type { Receipt } from "@/live/messages";
import { number } from "@/science/format";
import { kindNamed } from "./kinds";

/** An edit in words: "scale feature 42 at resid_post.15 by 3". */
export function editSentence(edit: Edit, kinds: readonly EditKind[]): string {
  const { site, adapter } = edit;
  const target = edit.feature ? `feature ${edit.feature.index} at ${site}` : adapter ? `adapter ${adapter.slice(0, 8)}` : site;
  const words: Record<string, string> = { target, site, adapter: adapter.slice(0, 8), strength: number(edit.strength), unit: unitWords(edit.unit) };
  const sentence = kindNamed(kinds, edit.kind).sentence.replace(/{(\w+)}/g, (asked, name: string) => words[name] ?? asked);
  return edit.enabled ? sentence : `${sentence} (muted)`;
}

export function unitWords(unit: Edit["unit"]): string {
  return { raw: "raw units", p999: "p99.9", resid_norm: "residual norm" }[unit];
}

/** What was done, from the receipt of an answer, so that a silent no-op cannot look like a result. */
export function receiptSentence(receipt: Receipt): string {
  const positions = new Set(receipt.edits.flatMap((edit) => edit.positions));
  const largest = Math.max(0, ...receipt.edits.map((edit) => edit.max_delta));
  if (receipt.edits.length === 0 || receipt.edits.every((edit) => edit.noop)) return "Nothing changed: no edit is on, or each is a no-op.";
  if (positions.size === 0) return "Nothing changed: no edited feature fires on this prompt.";
  const where = positions.size === 1 ? "1 position" : `${positions.size} positions`;
  const how =
    receipt.reused === "cache"
      ? "answered from the cache"
      : receipt.reused === "baseline"
        ? "the unpatched answer"
        : `computed from block ${receipt.first_layer}, position ${receipt.first_position}`;
  return `Acted at ${where}, max |Δ| ${number(largest)}, ${how}.`;
}
