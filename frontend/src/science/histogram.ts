/** Geometry of histograms, apart from how they are drawn. */

export interface Bin {
  low: number;
  high: number;
  count: number;
}

/** Equal bins from `start` to `end`. */
export function equalBins(counts: readonly number[], start: number, end: number): Bin[] {
  const width = (end - start) / counts.length;
  return counts.map((count, place) => ({ low: start + place * width, high: start + (place + 1) * width, count }));
}

/** Bins between given edges; there is one edge more than counts. */
export function edgedBins(counts: readonly number[], edges: readonly number[]): Bin[] {
  return counts.flatMap((count, place) => {
    const low = edges[place];
    const high = edges[place + 1];
    return low === undefined || high === undefined ? [] : [{ low, high, count }];
  });
}

/** Index of the bin a value falls into, or -1; the last bin includes its upper edge. */
export function binOf(bins: readonly Bin[], value: number): number {
  const last = bins.length - 1;
  if (last < 0 || value < bins[0]!.low || value > bins[last]!.high) return -1;
  const place = bins.findIndex((bin) => value < bin.high);
  return place === -1 ? last : place;
}

/** The share of all counts in bins that lie above a value's bin, and half of its own: a percentile. */
export function shareAbove(bins: readonly Bin[], value: number): number {
  const total = bins.reduce((sum, bin) => sum + bin.count, 0);
  const place = binOf(bins, value);
  if (total === 0 || place === -1) return 0;
  const above = bins.slice(place + 1).reduce((sum, bin) => sum + bin.count, 0);
  return (above + bins[place]!.count / 2) / total;
}

/** Height of a bar as a share of the tallest, on a linear or logarithmic count axis. */
export function barHeight(count: number, tallest: number, scale: "linear" | "log"): number {
  if (count <= 0 || tallest <= 0) return 0;
  return scale === "linear" ? count / tallest : Math.log1p(count) / Math.log1p(tallest);
}
