/** What exports are called, and what may be done with them. Pure functions. */

import type { PatchExport } from "@/api/types";

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
