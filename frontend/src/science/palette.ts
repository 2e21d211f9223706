/**
 * The colours that carry data. Orange means activation and "more", blue means the baseline and "less";
 * both ramps are monotonic in lightness, so they survive greyscale and every kind of colour blindness.
 * Components use them through the CSS variables of {@link cssVariables}.
 */

export interface Palette {
  surface: string;
  text: string;
  /** A fully lit token; token text stays readable on every mixture of it with the surface. */
  heat: string;
  /** Bars and lines on the surface. */
  more: string;
  less: string;
  /** Neutral marks: grid lines, axes. */
  line: string;
}

export const LIGHT: Palette = {
  surface: "#ffffff",
  text: "#1a1f26",
  heat: "#f0913a",
  more: "#b4560f",
  less: "#1f6fb2",
  line: "#c9d0d8",
};

export const DARK: Palette = {
  surface: "#15191f",
  text: "#e4e8ed",
  heat: "#9a4e12",
  more: "#f2a65a",
  less: "#6fb1ec",
  line: "#3b434d",
};

export function cssVariables(palette: Palette): Record<string, string> {
  return {
    "--data-surface": palette.surface,
    "--data-text": palette.text,
    "--data-heat": palette.heat,
    "--data-more": palette.more,
    "--data-less": palette.less,
    "--data-line": palette.line,
  };
}
