import { describe, expect, it } from "vitest";
import type { Sae } from "@/api/types";
import { comparedRows, differentText, fvuIntervals } from "@/science/comparison";
import { exampleGroups, type Example } from "@/science/examples";
import * as format from "@/science/format";
import { FAINTEST, heatStyle, heatShare, legendStops } from "@/science/heat";
import { barHeight, binOf, edgedBins, equalBins, shareAbove } from "@/science/histogram";
import { DARK, LIGHT, type Palette } from "@/science/palette";
import { filterOrigin, leavesOut } from "@/science/tokenFilter";
import { tokenInText, tokenLabel, tokenSpoken } from "@/science/tokens";

const plain = (text: string) => text.replaceAll("\u202f", " ");

describe("numbers", () => {
  it("keep significant digits and use a true minus", () => {
    expect(format.number(0.14273575)).toBe("0.143");
    expect(format.number(-5.56219)).toBe("−5.56");
    expect(format.number(0)).toBe("0");
    expect(format.number(1201.9)).toBe("1\u202f202");
    expect(format.number(0.0000123)).toBe("1.23×10⁻⁵");
    expect(format.number(-2.5e9)).toBe("−2.50×10⁹");
  });
  it("are a dash when missing or not finite", () => {
    for (const show of [format.integer, format.number, format.percent, format.points, format.compact, format.bytes, format.duration])
      for (const value of [null, undefined, NaN, Infinity]) expect(show(value)).toBe("–");
  });
  it("show shares with a precision that fits their size", () => {
    expect(plain(format.percent(0.5234))).toBe("52.3 %");
    expect(plain(format.percent(0.0413))).toBe("4.13 %");
    expect(plain(format.percent(0.00413))).toBe("0.413 %");
    expect(plain(format.percent(0.000001))).toBe("< 0.001 %");
    expect(plain(format.percent(0))).toBe("0 %");
  });
  it("always sign a difference, and never a zero", () => {
    expect(format.points(0.1234)).toBe("+12.3");
    expect(format.points(-0.0456)).toBe("−4.56");
    expect(format.points(0.00001)).toBe("±0");
    expect(format.points(0)).toBe("±0");
  });
  it("shorten counts and sizes", () => {
    expect(format.compact(287675)).toBe("288k");
    expect(format.compact(9999)).toBe("9\u202f999");
    expect(format.compact(134_515_008)).toBe("135M");
    expect(plain(format.bytes(37_784_120))).toBe("37.8 MB");
    expect(plain(format.bytes(999_999))).toBe("1 MB");
    expect(plain(format.bytes(12))).toBe("12 B");
  });
  it("read times as people say them", () => {
    expect(plain(format.duration(0.25))).toBe("250 ms");
    expect(plain(format.duration(59.7))).toBe("1 min");
    expect(plain(format.duration(200))).toBe("3 min 20 s");
    expect(plain(format.duration(7500))).toBe("2 h 5 min");
    expect(plain(format.duration(3 * 86400 + 3600))).toBe("3 d 1 h");
    expect(plain(format.ago("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:05:00Z")))).toBe("5 min ago");
    expect(plain(format.rate(1234.5, "tokens"))).toBe("1 235 tokens/s");
  });
});

describe("tokens", () => {
  it("make white space visible where it would be lost", () => {
    expect(tokenLabel(" the")).toBe("␣the");
    expect(tokenLabel("\n\n")).toBe("↵↵");
    expect(tokenLabel("a b")).toBe("a b");
    expect(tokenLabel("")).toBe("∅");
    expect(tokenInText(" the\n")).toBe(" the↵");
    expect(tokenSpoken("\n")).toBe("line end");
    expect(tokenSpoken("  ")).toBe("space");
  });

  it("stay visible inside a character of several tokens", () => {
    expect(["", "", "東"].map(tokenInText).join("")).toBe("··東");
    expect(tokenSpoken("")).toBe("part of a character");
  });
});

describe("token filters", () => {
  it("say what is left out and how that was found", () => {
    const stated = { exclude_special: true, max_norm: 83.69 };
    expect(leavesOut(stated)).toBe("special tokens, norms above 83.7");
    expect(filterOrigin(stated)).toMatch(/^stated with the SAE/);
    const derived = { ...stated, derived: { source: "recording" as const, name: "4f".repeat(16), factor: 8, median_norm: 10.46 } };
    expect(filterOrigin(derived)).toMatch(/^derived.*8 × the median norm 10.5 of recording 4f4f4f4f4f4f$/);
    expect(leavesOut({ exclude_special: false, max_norm: null })).toBe("no token");
    expect(filterOrigin({ exclude_special: true, max_norm: null })).toMatch(/stated no filter/);
  });
});

// --- colour ------------------------------------------------------------------------------------------

type Rgb = [number, number, number];

function linear(hex: string): Rgb {
  return [1, 3, 5].map((at) => {
    const value = parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  }) as Rgb;
}

const luminance = ([r, g, b]: Rgb) => 0.2126 * r + 0.7152 * g + 0.0722 * b;

function contrast(a: number, b: number): number {
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

/** Mixing in OKLab, as the browser's color-mix does it, back to linear light. */
function mix(from: Rgb, to: Rgb, share: number): Rgb {
  const lms = ([r, g, b]: Rgb) =>
    [
      Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b),
      Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b),
      Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b),
    ] as Rgb;
  const [a, b] = [lms(from), lms(to)];
  const [l, m, s] = a.map((value, at) => (value + (b[at]! - value) * share) ** 3) as Rgb;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

describe.each([["light", LIGHT], ["dark", DARK]] as [string, Palette][])("the %s palette", (_name, palette) => {
  const surface = linear(palette.surface);
  const text = luminance(linear(palette.text));
  const ramp = Array.from({ length: 21 }, (_, step) => luminance(mix(surface, linear(palette.heat), step / 20)));

  it("keeps token text readable at every strength (WCAG AA)", () => {
    for (const background of ramp) expect(contrast(text, background)).toBeGreaterThanOrEqual(4.5);
  });
  it("is monotonic in lightness, so that it survives greyscale", () => {
    const steps = ramp.slice(1).map((value, at) => value - ramp[at]!);
    expect(new Set(steps.map(Math.sign)).size).toBe(1);
  });
  it("draws bars that stand out from the surface (3:1)", () => {
    for (const colour of [palette.more, palette.less])
      expect(contrast(luminance(linear(colour)), luminance(surface))).toBeGreaterThanOrEqual(3);
  });
});

describe("heat", () => {
  it("leaves silent tokens bare and never hides a weak one", () => {
    expect(heatShare(0, 10)).toBe(0);
    expect(heatStyle(0, 10)).toBeUndefined();
    expect(heatShare(1e-9, 10)).toBeGreaterThanOrEqual(FAINTEST);
  });
  it("is full at the scale, stays there above it, and rises between", () => {
    expect(heatShare(10, 10)).toBe(1);
    expect(heatShare(25, 10)).toBe(1);
    const shares = [1, 2, 5, 9].map((value) => heatShare(value, 10));
    expect([...shares].sort((a, b) => a - b)).toEqual(shares);
  });
  it("survives a feature that never fired and values that are no numbers", () => {
    expect(heatShare(3, 0)).toBe(0);
    expect(heatShare(NaN, 10)).toBe(0);
    expect(legendStops(0)).toEqual([0]);
    expect(legendStops(8)).toEqual([0, 2, 4, 6, 8]);
  });
});

describe("histograms", () => {
  const bins = equalBins([5, 3, 0, 2], 0, 8);
  it("place every value in one bin, the last edge included", () => {
    expect(binOf(bins, 0)).toBe(0);
    expect(binOf(bins, 2)).toBe(1);
    expect(binOf(bins, 8)).toBe(3);
    expect(binOf(bins, 8.1)).toBe(-1);
    expect(binOf([], 1)).toBe(-1);
  });
  it("say how rare a value is", () => {
    expect(shareAbove(bins, 7)).toBeCloseTo(0.1);
    expect(shareAbove(bins, 0.5)).toBeCloseTo(0.75);
  });
  it("take explicit edges", () => {
    expect(edgedBins([4, 6], [-6, -5.9, -5.8])).toEqual([
      { low: -6, high: -5.9, count: 4 },
      { low: -5.9, high: -5.8, count: 6 },
    ]);
  });
  it("have heights between 0 and 1 on either scale", () => {
    expect(barHeight(5, 10, "linear")).toBe(0.5);
    expect(barHeight(10, 10, "log")).toBe(1);
    expect(barHeight(1, 1000, "log")).toBeGreaterThan(0.05);
    expect(barHeight(0, 10, "log")).toBe(0);
  });
});

describe("groups of examples", () => {
  const example = (group: number, max: number): Example => ({ doc: 0, pos: 0, peak: 0, max, texts: ["a"], values: [max], group });
  it("are the strongest, then each quantile that has any", () => {
    const groups = exampleGroups({ examples: [example(0, 9)], quantile_examples: [example(1, 8), example(3, 3), example(3, 2)] });
    expect(groups.map((group) => [group.title, group.examples.length])).toEqual([["Strongest", 1], ["Quantile 1 of 3", 1], ["Quantile 3 of 3", 2]]);
    expect(groups[2]?.note).toContain("peaks here 2.00 to 3.00");
  });
  it("are the strongest alone in an analysis that sampled nothing", () => {
    expect(exampleGroups({ examples: [example(0, 9)], quantile_examples: [] })).toHaveLength(1);
  });
});

describe("a comparison", () => {
  const sae = (name: string, recording: string, metrics: Record<string, number | null> | null) =>
    ({ id: name, name, recording, evaluation: metrics && { metrics } }) as unknown as Sae;
  const saes = [sae("a", "r", { fvu: 0.2, fvu_low: 0.19, fvu_high: 0.21, l0: 32, cosine: 0.9 }), sae("b", "r", { fvu: 0.1, l0: 64, cosine: 0.8 }), sae("c", "s", null)];
  it("marks the best where better means something, and leaves out what nobody has", () => {
    const rows = comparedRows(saes);
    expect(rows.map((row) => row.label)).toEqual(["FVU", "Cosine", "L0"]);
    expect(rows[0]?.cells.map((cell) => cell.best)).toEqual([false, true, false]);
    expect(rows[1]?.cells.map((cell) => cell.best)).toEqual([true, false, false]);
    expect(rows[2]?.cells.some((cell) => cell.best)).toBe(false);
  });
  it("shows intervals of what was measured, and says when the text differs", () => {
    expect(fvuIntervals(saes).map((row) => [row.low, row.high])).toEqual([[0.19, 0.21], [0.1, 0.1]]);
    expect(differentText(saes)).toBe(true);
    expect(differentText(saes.slice(0, 2))).toBe(false);
  });
});
