import type { CSSProperties } from "react";

/** How strongly a token is coloured, given the feature's own scale. */

/** The faintest colour of a token that fires at all: silent and weak must not look the same. */
export const FAINTEST = 0.12;

/**
 * The share of the full colour for an activation, 0 when silent.
 * `scale` is the feature's own maximum over the whole recording, never the maximum of what is on screen:
 * two features, or two examples, then look equally strong only when they are.
 */
export function heatShare(value: number, scale: number): number {
  if (!(value > 0) || !(scale > 0)) return 0;
  return FAINTEST + (1 - FAINTEST) * Math.min(value / scale, 1);
}

/** Style of a token with the class `heat`, whose background mixes the heat colour with what lies beneath. */
export function heatStyle(value: number, scale: number): CSSProperties | undefined {
  const share = heatShare(value, scale);
  return share === 0 ? undefined : ({ "--heat": `${(share * 100).toFixed(1)}%` } as CSSProperties);
}

/** Evenly spaced values of a legend from 0 to the scale. */
export function legendStops(scale: number, count = 5): number[] {
  if (!(scale > 0)) return [0];
  return Array.from({ length: count }, (_, step) => (scale * step) / (count - 1));
}
