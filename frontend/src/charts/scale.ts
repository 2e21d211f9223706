/** Scales of the charts' axes: from a value to a place on the screen, and the values worth a tick. */

export interface Axis {
  low: number;
  high: number;
  /** Powers instead of steps; both ends are positive then. */
  logarithmic?: boolean;
  /** How a value is written. */
  show: (value: number) => string;
}

/** Where a value of the axis lies between two places; values of an axis without extent lie in the middle. */
export function scale({ low, high, logarithmic = false }: Axis, from: number, to: number): (value: number) => number {
  const of = logarithmic ? Math.log : (value: number) => value;
  const span = of(high) - of(low);
  return (value) => (span > 0 ? from + ((of(value) - of(low)) / span) * (to - from) : (from + to) / 2);
}

/** About `wanted` round values of the axis. */
export function ticks({ low, high, logarithmic = false }: Axis, wanted: number): number[] {
  return logarithmic ? logarithmicTicks(low, high, wanted) : linearTicks(low, high, wanted);
}

function linearTicks(low: number, high: number, wanted: number): number[] {
  const span = high - low;
  if (!(span > 0) || !Number.isFinite(span)) return [low];
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

function logarithmicTicks(low: number, high: number, wanted: number): number[] {
  const fine = roundValues([1, 2, 5], low, high);
  return fine.length <= wanted + 1 ? fine : roundValues([1], low, high);
}

/** The factors times powers of ten, between two ends. */
function roundValues(factors: readonly number[], low: number, high: number): number[] {
  const values: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    values.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(12))));
  }
  return values.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
}

/** The ends of an axis that hold all values: zero and a little above the largest, or 1-2-5 values around them. */
export function ends(values: readonly number[], logarithmic: boolean): { low: number; high: number } {
  const low = Math.min(...values);
  const high = Math.max(...values);
  if (values.length === 0) return { low: 0, high: 1 };
  if (!logarithmic) return { low: Math.min(0, low), high: high > 0 ? high * 1.08 : 1 };
  const around = roundValues([1, 2, 5], low / 10, high * 10);
  return { low: around.findLast((value) => value <= low) ?? low, high: around.find((value) => value >= high) ?? high };
}
