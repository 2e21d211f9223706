import type { Edit } from "@/api/types";
import type { Receipt } from "@/live/messages";
import { number } from "@/science/format";

/** An edit in words: "scale feature 42 at resid_post.15 by 3". */
export function editSentence(edit: Edit): string {
  const what = `feature ${edit.feature?.index} at ${edit.site}`;
  const muted = edit.enabled ? "" : " (muted)";
  switch (edit.kind) {
    case "ablate":
      return `ablate ${what}${muted}`;
    case "scale":
      return `scale ${what} by ${number(edit.strength)}${muted}`;
    case "project":
      return `project ${what} to ${number(edit.strength)} of its component${muted}`;
    case "clamp_firing":
      return `set ${what} to ${number(edit.strength)} × ${unitWords(edit.unit)} where it fires${muted}`;
    case "clamp_all":
      return `set ${what} to ${number(edit.strength)} × ${unitWords(edit.unit)} at every token${muted}`;
    case "ablate_everywhere":
      return `remove the direction of ${what} from everything blocks write${muted}`;
    case "splice":
      return `replace ${edit.site} by its reconstruction${muted}`;
    case "lora":
      return `add ${number(edit.strength)} × adapter ${edit.adapter.slice(0, 8)}${muted}`;
    case "add":
      return `add ${number(edit.strength)} × ${unitWords(edit.unit)} of ${what}${muted}`;
  }
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
