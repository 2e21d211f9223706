import { number } from "@/science/format";

/** `summary.token_filter` of an SAE: the tokens that pass through it untouched. */
export interface TokenFilter {
  exclude_special: boolean;
  max_norm: number | null;
  derived?: { source: "recording" | "text"; name: string; factor: number; median_norm: number } | null;
}

/** What an SAE leaves out, in a few words. */
export function leavesOut(filter: TokenFilter): string {
  const parts = filter.exclude_special ? ["special tokens"] : [];
  if (filter.max_norm !== null) parts.push(`norms above ${number(filter.max_norm)}`);
  else if (filter.exclude_special) parts.push("sinks of what it is used on");
  return parts.join(", ") || "no token";
}

/** How that was found. */
export function filterOrigin(filter: TokenFilter): string {
  const { derived } = filter;
  if (derived) {
    const where = derived.source === "recording" ? `recording ${derived.name.slice(0, 12)}` : "a short text run through the model";
    return `derived, as the files stated no filter: ${derived.factor} × the median norm ${number(derived.median_norm)} of ${where}`;
  }
  if (filter.max_norm === null && filter.exclude_special) return "the files stated no filter: it follows from the recording or model it is used on";
  return "stated with the SAE: these tokens pass through it untouched";
}
