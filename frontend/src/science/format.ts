/** Numbers, quantities and times as people read them. Missing values are an en dash, minus is U+2212. */

const MISSING = "–";
const THIN = "\u202f";

type Maybe = number | null | undefined;

function usable(value: Maybe): value is number {
  return value != null && Number.isFinite(value);
}

function withMinus(text: string): string {
  return text.replace("-", "−");
}

/** Thousands apart: 1 234 567. */
export function integer(value: Maybe): string {
  if (!usable(value)) return MISSING;
  return withMinus(Math.round(value).toString().replace(/\B(?=(\d{3})+(?!\d))/g, THIN));
}

/** `digits` significant digits; very small and very large numbers in powers of ten. */
export function number(value: Maybe, digits = 3): string {
  if (!usable(value)) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e") as [string, string];
    return withMinus(`${mantissa}×10${superscript(Number(exponent))}`);
  }
  if (size >= 10 ** digits) return integer(value);
  return withMinus(value.toPrecision(digits));
}

const SUPERSCRIPTS: Record<string, string> = {
  "-": "⁻", "0": "⁰", "1": "¹", "2": "²", "3": "³", "4": "⁴", "5": "⁵", "6": "⁶", "7": "⁷", "8": "⁸", "9": "⁹",
};

function superscript(exponent: number): string {
  return String(exponent).replace(/./g, (sign) => SUPERSCRIPTS[sign] ?? sign);
}

/** A fixed number of decimals. */
export function fixed(value: Maybe, decimals: number): string {
  return usable(value) ? withMinus(value.toFixed(decimals)) : MISSING;
}

/** A probability or share in per cent: 12.3 %, 0.41 %, < 0.001 %. */
export function percent(share: Maybe): string {
  if (!usable(share)) return MISSING;
  const value = share * 100;
  const size = Math.abs(value);
  if (size === 0) return `0${THIN}%`;
  if (size < 0.001) return `<${THIN}0.001${THIN}%`;
  const decimals = size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return `${withMinus(value.toFixed(decimals))}${THIN}%`;
}

/** A difference of two probabilities in percentage points, always with its sign. */
export function points(difference: Maybe): string {
  if (!usable(difference)) return MISSING;
  const value = difference * 100;
  const decimals = Math.abs(value) >= 10 ? 1 : 2;
  const text = Math.abs(value).toFixed(decimals);
  if (Number(text) === 0) return "±0";
  return `${value > 0 ? "+" : "−"}${text}`;
}

/** Large counts in short: 287.7k, 134.5M. */
export function compact(value: Maybe): string {
  if (!usable(value)) return MISSING;
  for (const [size, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]] as const) {
    if (Math.abs(value) >= size) {
      const unit = suffix === "k" ? 1e3 : size;
      return withMinus(`${trimmed(value / unit)}${suffix}`);
    }
  }
  return integer(value);
}

function trimmed(value: number): string {
  const text = Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(1);
  return text.replace(/\.0$/, "");
}

/** Sizes in powers of ten, as disks and networks count. */
export function bytes(value: Maybe): string {
  if (!usable(value)) return MISSING;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? size.toFixed(0) : trimmed(size)}${THIN}${units[unit]!}`;
}

/** 850 ms, 12 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds: Maybe): string {
  if (!usable(seconds)) return MISSING;
  if (seconds < 1) return `${Math.round(seconds * 1000)}${THIN}ms`;
  if (seconds < 10) return `${seconds.toFixed(1).replace(/\.0$/, "")}${THIN}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}${THIN}s`;
  if (whole < 3600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  const minutes = Math.round(whole / 60);
  if (minutes < 48 * 60) return pair(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(minutes / 60);
  return pair(Math.floor(hours / 24), "d", hours % 24, "h");
}

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  const first = `${large}${THIN}${largeUnit}`;
  return small === 0 ? first : `${first} ${small}${THIN}${smallUnit}`;
}

export function milliseconds(value: Maybe): string {
  if (!usable(value)) return MISSING;
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)}${THIN}ms`;
}

/** `rate` of work in units per second. */
export function rate(value: Maybe, unit: string): string {
  return usable(value) ? `${compact(value)}${THIN}${unit}/s`.replace(`${THIN}/s`, "/s") : MISSING;
}

/** How long ago a moment was, in words: "just now", "5 min ago", "3 d ago". */
export function ago(moment: string | null | undefined, now = Date.now()): string {
  if (!moment) return MISSING;
  const seconds = (now - Date.parse(moment)) / 1000;
  if (!Number.isFinite(seconds)) return MISSING;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.round(seconds / 60)}${THIN}min ago`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)}${THIN}h ago`;
  return `${Math.round(seconds / 86400)}${THIN}d ago`;
}

/** Date and time of day in the reader's own conventions. */
export function moment(value: string | null | undefined): string {
  return value ? new Date(value).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : MISSING;
}
