/** How the boxes and curves of a picture look, apart from what they are drawn with. */

import { strokeWidth, type Box, type Curve } from "./layout";
import { boxText, edgeState, type EdgeState } from "./words";
import { isTarget, type DrawnEdge } from "./fold";

/** The colours of a picture. */
export interface Ink {
  surface: string;
  text: string;
  dimmed: string;
  more: string;
  less: string;
  line: string;
  /** Boxes of errors and constants. */
  grey: string;
  /** Pins and the selected node. */
  accent: string;
}

export const LIGHT_INK: Ink = {
  surface: "#ffffff", text: "#1a1f26", dimmed: "#59636e", more: "#b4560f", less: "#1f6fb2", line: "#c9d0d8", grey: "#eceff2", accent: "#155f9c",
};

export const DARK_INK: Ink = {
  surface: "#15191f", text: "#e4e8ed", dimmed: "#9aa4b0", more: "#f2a65a", less: "#6fb1ec", line: "#3b434d", grey: "#252b33", accent: "#76adde",
};

export interface LineLook {
  color: string;
  width: number;
  /** Lengths of strokes and gaps; none is a whole line. */
  dashes: number[];
  opacity: number;
  state: EdgeState;
}

/** A drawn edge is verified or refuted when all that was measured of it says so. */
export function drawnState(edge: DrawnEdge): EdgeState {
  const states = new Set(edge.edges.map(edgeState));
  return states.size === 1 ? [...states][0]! : states.has("verified") ? "verified" : "open";
}

const dashesOf = (state: EdgeState, width: number): number[] => ({ verified: [], open: [4 + 2 * width, 3 + width], refuted: [1.5, 4] })[state];

/** Orange adds, blue takes away; whole lines are verified, dashed ones not measured, dotted and struck ones refuted. */
export function lineLook(curve: Curve, ink: Ink): LineLook {
  const state = drawnState(curve.edge);
  return {
    color: curve.edge.attribution < 0 ? ink.less : ink.more,
    width: state === "refuted" ? 1.2 : strokeWidth(curve.share),
    dashes: dashesOf(state, strokeWidth(curve.share)),
    opacity: state === "refuted" ? 0.55 : 0.35 + 0.65 * curve.share,
    state,
  };
}

export interface BoxLook {
  fill: string;
  stroke: string;
  lineWidth: number;
  text: string;
  /** What stands in it: first in the color of text, then more of it in the dimmed one. */
  words: [first: string, more: string];
  /** A second outline behind it: several nodes in one. */
  stacked: boolean;
  radius: number;
}

const CHARACTER = 6.7;

/** A name that fits a box beside its first words. */
function cut(name: string, room: number): string {
  const fits = Math.floor(room / CHARACTER);
  return name.length <= fits ? name : fits < 5 ? "" : `${name.slice(0, fits - 1)}…`;
}

export function boxLook({ node, width }: Box, ink: Ink, pinned: boolean, name: string): BoxLook {
  const kind = node.members[0]!.kind;
  const left = kind === "error" || kind === "bias";
  const first = boxText(node);
  const target = isTarget(node);
  return {
    fill: target ? ink.text : left ? ink.grey : ink.surface,
    stroke: pinned ? ink.accent : left ? ink.line : ink.dimmed,
    lineWidth: pinned ? 2.25 : 1,
    text: target ? ink.surface : left ? ink.dimmed : ink.text,
    words: node.group !== null || target ? [cut(first, width - 6), ""] : [first, cut(name, width - 18 - first.length * CHARACTER)],
    stacked: node.members.length > 1,
    radius: node.group === null ? Math.min(6, width / 2) : 2,
  };
}
