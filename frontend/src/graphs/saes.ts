/** Which SAEs take part in a graph unless somebody chooses. */

import type { GraphTarget } from "./types";

interface Known {
  id: string;
  fingerprint: string;
  state: string;
  site: string;
  layer: number;
  params?: Readonly<Record<string, unknown>>;
}

/** Kinds of sites whose parts can be nodes. */
const POSSIBLE = new Set(["resid_post", "attn_out", "mlp_out"]);

/** The kind of site it writes to, which for a transcoder is another than it reads. */
function writesTo({ site, params }: Known): string {
  const out = params?.site_out;
  return typeof out === "string" && out !== "" ? out.split(".")[0]! : site;
}

export const canTakePart = (sae: Known): boolean => sae.state === "ready" && sae.fingerprint !== "" && POSSIBLE.has(writesTo(sae));

/** The highest block whose SAE can contribute to the target; undefined where all can. */
export function limitOf(saes: readonly Known[], target: GraphTarget): number | undefined {
  if (target.kind === "feature") return saes.find((sae) => sae.fingerprint === target.sae)?.layer;
  if (target.kind === "attention" || target.kind === "direction") return target.layer ?? undefined;
  return undefined;
}

/** Those of the residual stream below the target, one for each block, the first listed; and the target's own. */
export function usualSaes<Sae extends Known>(saes: readonly Sae[], target: GraphTarget): Sae[] {
  const limit = limitOf(saes, target);
  const own = target.kind === "feature" ? saes.filter((sae) => sae.fingerprint === target.sae) : [];
  const taken = new Set(own.map((sae) => `${sae.site}.${sae.layer}`));
  const below = saes.filter((sae) => {
    const place = `${sae.site}.${sae.layer}`;
    if (!canTakePart(sae) || writesTo(sae) !== "resid_post" || taken.has(place)) return false;
    if (limit !== undefined && sae.layer >= limit) return false;
    taken.add(place);
    return true;
  });
  return [...own.slice(0, 1), ...below].sort((a, b) => b.layer - a.layer);
}
