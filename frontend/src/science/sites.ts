/** Places in a model where activations are read. */

const WORDS: Record<string, string> = {
  resid_post: "residual stream after",
  resid_mid: "residual stream inside",
  attn_out: "output of attention in",
  mlp_out: "output of the MLP in",
  attn_z: "heads of attention in",
  mlp_act: "neurons of the MLP in",
};

export interface SiteAt {
  kind: string;
  layer: number;
}

/** "residual stream after": where a kind of site is, before the number of a block. */
export function siteWords(kind: string): string {
  return WORDS[kind] ?? kind;
}

/** "resid_post.3", as the engine writes it. */
export function siteName(site: SiteAt): string {
  return `${site.kind}.${site.layer}`;
}

/** "resid_post.3: residual stream after block 3"; the name first, because inputs cut off the end. */
export function siteLabel(site: SiteAt): string {
  const words = WORDS[site.kind];
  return words ? `${siteName(site)}: ${words} block ${site.layer}` : siteName(site);
}

/** Everything a recording holds: each of its kinds at each of its blocks. */
export function recordedSites(recording: { sites: readonly string[]; layers: readonly number[] }): SiteAt[] {
  return recording.layers.flatMap((layer) => recording.sites.map((kind) => ({ kind, layer })));
}

/** "topk at resid_post.3 of tiny"; what an import has not read from its files yet is not said. */
export function saeDescription(sae: { architecture: string; site: string; layer: number; model_name: string }): string {
  const place = sae.site ? `at ${siteName({ kind: sae.site, layer: sae.layer })} of ${sae.model_name}` : `of ${sae.model_name}`;
  return sae.architecture ? `${sae.architecture} ${place}` : place;
}
