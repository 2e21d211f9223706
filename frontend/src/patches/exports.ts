/** What exports are called, and what may be done with them. Pure functions. */

import type { Certificate, PatchExport } from "@/api/types";
import { percent } from "@/science/format";

/** What decides whether the files of an export may be fetched. */
export type Gated = Pick<PatchExport, "gate" | "state">;

type Sign = [sign: string, word: string, color: string];

const GRADES: Partial<Record<string, Sign>> = {
  exact: ["✓", "exact", "ink"],
  approximate: ["≈", "approximate", "orange"],
  not_possible: ["✕", "not possible", "gray"],
};

export function gradeSign(grade: string): Sign {
  return GRADES[grade] ?? ["", grade, "gray"];
}

/** Whether the files may be fetched, in words. */
export function gateSign(made: Gated): Sign {
  if (made.state === "failed") return ["✕", "failed", "orange"];
  if (made.state !== "ready") return ["…", "being written", "gray"];
  switch (made.gate) {
    case "passed": return ["✓", "certified", "ink"];
    case "blocked": return ["✕", "blocked by its certificate", "orange"];
    case "overridden": return ["!", "let through by an owner", "orange"];
    default: return ["…", "being measured", "gray"];
  }
}

export function canFetch(made: Gated): boolean {
  return made.state === "ready" && (made.gate === "passed" || made.gate === "overridden");
}

/** The headline of a certificate: what part of the patch's effect the export keeps, with its interval. */
export function shareSentence({ share, measured }: Pick<Certificate, "share" | "measured">): string {
  if (share === null) {
    const older = !("notes" in measured);
    return older ? "Measured by an older version, which did not gate the share of the effect." : "What the export keeps of the effect could not be measured.";
  }
  const interval = share.interval ? ` (95 % interval ${share.interval.map((end) => percent(end)).join(" to ")})` : "";
  return `Keeps ${percent(share.value)} of the patch's effect${interval}.`;
}

export function gateLimit({ at_least, limit }: Certificate["gates"][number]): string {
  return `${at_least ? "≥" : "≤"} ${limit}`;
}

/** The lines of a text that say something. */
export function lines(text: string): string[] {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

const WANTED = ["adapter_config.json", "adapter_model.safetensors"];

/** What is wrong with the files chosen as an adapter, or null. */
export function adapterFilesProblem(names: readonly string[]): string | null {
  if (names.some((name) => name.endsWith(".bin"))) {
    return "adapter_model.bin is a pickle, which can run code. Save the adapter with safe_serialization=True.";
  }
  const missing = WANTED.filter((name) => !names.includes(name));
  if (missing.length > 0) return `Missing: ${missing.join(" and ")}.`;
  const odd = names.filter((name) => !WANTED.includes(name));
  return odd.length > 0 ? `Not part of an adapter: ${odd.join(", ")}.` : null;
}
