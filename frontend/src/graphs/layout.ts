/** Where everything of a graph is drawn: layers from bottom to top, tokens from left to right. Pure functions. */

import { largestInto, shareOf, shownEdges, shownNodes, type Density } from "./filter";
import { isTarget, type Drawn, type DrawnEdge, type DrawnNode } from "./fold";

/** A node's box; `x` and `y` are its middle. */
export interface Box {
  node: DrawnNode;
  x: number;
  y: number;
  width: number;
  height: number;
}

/** An edge's curve, from the top of the parent to the bottom of the child. */
export interface Curve {
  edge: DrawnEdge;
  x1: number;
  y1: number;
  x2: number;
  y2: number;
  /** Its size as a share of the largest into the same child. */
  share: number;
}

export interface Row {
  layer: number;
  /** The row of the target. */
  target: boolean;
  y: number;
  height: number;
}

export interface Column {
  /** null: of nodes that belong to no token. */
  position: number | null;
  x: number;
  width: number;
  /** Tokens before it are left out because nothing of the graph is there. */
  gap: boolean;
}

export interface Picture {
  width: number;
  height: number;
  boxes: Box[];
  /** The weakest first. */
  curves: Curve[];
  rows: Row[];
  columns: Column[];
  /** Boxes carry text. */
  labelled: boolean;
}

export const GUTTER = 56;
export const HEAD = 34;
const FOOT = 12;
const GAP_X = 8;
const GAP_Y = 8;
const ROW_PAD = 46;
const COLUMN_PAD = 14;
const COLUMN_LEAST = 44;
/** Prompts up to this many tokens are drawn with all of them. */
const ALL_TOKENS = 16;
/** With more nodes than this they are dots. */
const MOST_LABELLED = 400;
/** With more nodes than this their boxes have no room for words. */
const MOST_WORDS = 120;

interface Sizes {
  width: number;
  height: number;
  perLine: (count: number) => number;
}

function sizesOf(count: number, words: boolean): Sizes {
  if (count > MOST_LABELLED) return { width: 10, height: 10, perLine: (n) => Math.min(16, Math.ceil(Math.sqrt(n * 1.5))) };
  const width = words && count <= MOST_WORDS ? 104 : 54;
  return { width, height: 22, perLine: (n) => (n <= 4 ? 1 : Math.min(width > 60 ? 3 : 5, Math.ceil(Math.sqrt(n / 2)))) };
}

/** How much wider than its room a picture may be before its boxes give up their words. */
const TOO_WIDE = 1.25;

/** Lay a folded graph out, with words in its boxes if it then fits about into `room`. `stay` are drawn even without an edge. */
export function layout(drawn: Drawn, tokens: number, density: Density, stay: Iterable<string> = [], room = 0): Picture {
  const nodes = [...stay];
  const wordy = room > 0 ? laidOut(drawn, tokens, density, nodes, true) : null;
  return wordy && wordy.width <= room * TOO_WIDE ? wordy : laidOut(drawn, tokens, density, nodes, false);
}

function laidOut(drawn: Drawn, tokens: number, density: Density, stay: readonly string[], words: boolean): Picture {
  const edges = shownEdges(drawn.edges, density);
  const nodes = shownNodes(drawn.nodes, edges, stay);
  const sizes = sizesOf(nodes.length, words);
  const weight = weights(edges);
  const cells = cellsOf(nodes, weight);
  const columns = columnsOf(cells, tokens, sizes);
  const rows = rowsOf(cells, sizes);
  const boxes = boxesOf(cells, rows, columns, sizes);
  return {
    width: columns.at(-1) ? columns.at(-1)!.x + columns.at(-1)!.width / 2 + GAP_X : GUTTER,
    height: rows.at(-1) ? rows.at(-1)!.y + rows.at(-1)!.height / 2 + FOOT : HEAD,
    boxes,
    curves: curvesOf(edges, boxes, largestInto(drawn.edges)),
    rows,
    columns,
    labelled: nodes.length <= MOST_LABELLED,
  };
}

/** The strongest edge that leaves each node, by its share of what reaches the child. */
function weights(edges: readonly DrawnEdge[]): Map<string, number> {
  const largest = largestInto(edges);
  const found = new Map<string, number>();
  for (const { from, to, attribution } of edges) {
    found.set(from, Math.max(found.get(from) ?? 0, shareOf(attribution, largest.get(to))));
  }
  return found;
}

interface Cell {
  row: string;
  layer: number;
  target: boolean;
  position: number | null;
  nodes: DrawnNode[];
}

function cellsOf(nodes: readonly DrawnNode[], weight: ReadonlyMap<string, number>): Cell[] {
  const cells = new Map<string, Cell>();
  for (const node of nodes) {
    const target = isTarget(node);
    const row = target ? "target" : String(node.layer);
    const key = `${row} ${node.position}`;
    const cell = cells.get(key);
    if (cell) cell.nodes.push(node);
    else cells.set(key, { row, layer: node.layer, target, position: node.position, nodes: [node] });
  }
  for (const cell of cells.values()) cell.nodes.sort((a, b) => (weight.get(b.id) ?? 0) - (weight.get(a.id) ?? 0) || (a.id < b.id ? -1 : 1));
  return [...cells.values()];
}

function rowsOf(cells: readonly Cell[], sizes: Sizes): Row[] {
  const lines = new Map<string, Row & { lines: number }>();
  for (const { row, layer, target, nodes } of cells) {
    const needed = Math.ceil(nodes.length / sizes.perLine(nodes.length));
    const known = lines.get(row);
    lines.set(row, { layer, target, y: 0, height: 0, lines: Math.max(known?.lines ?? 0, needed) });
  }
  const sorted = [...lines.values()].sort((a, b) => Number(b.target) - Number(a.target) || b.layer - a.layer);
  let y = HEAD;
  return sorted.map(({ layer, target, lines: count }) => {
    const height = count * (sizes.height + GAP_Y) + ROW_PAD;
    y += height;
    return { layer, target, y: y - height / 2, height };
  });
}

function columnsOf(cells: readonly Cell[], tokens: number, sizes: Sizes): Column[] {
  const widths = new Map<number | null, number>();
  for (const { position, nodes } of cells) {
    const across = Math.min(nodes.length, sizes.perLine(nodes.length));
    widths.set(position, Math.max(widths.get(position) ?? 0, across * (sizes.width + GAP_X)));
  }
  const loose = widths.has(null) ? [null] : [];
  const used = [...widths.keys()].filter((position) => position !== null).sort((a, b) => a - b);
  const placed = tokens <= ALL_TOKENS ? Array.from({ length: tokens }, (_, at) => at) : used;
  let x = GUTTER;
  let before = -1;
  return [...loose, ...placed].map((position) => {
    const gap = position !== null && position !== before + 1;
    if (position !== null) before = position;
    const width = Math.max(COLUMN_LEAST, widths.get(position) ?? 0) + COLUMN_PAD + (gap ? 14 : 0);
    x += width;
    return { position, x: x - width / 2 + (gap ? 7 : 0), width, gap };
  });
}

function boxesOf(cells: readonly Cell[], rows: readonly Row[], columns: readonly Column[], sizes: Sizes): Box[] {
  const rowAt = new Map(rows.map((row) => [row.target ? "target" : String(row.layer), row]));
  const columnAt = new Map(columns.map((column) => [column.position, column]));
  return cells.flatMap(({ row, position, nodes }) => {
    const { y } = rowAt.get(row)!;
    const { x } = columnAt.get(position)!;
    const perLine = sizes.perLine(nodes.length);
    const lines = Math.ceil(nodes.length / perLine);
    return nodes.map((node, place): Box => {
      const line = Math.floor(place / perLine);
      const across = Math.min(perLine, nodes.length - line * perLine);
      return {
        node,
        x: x + (place % perLine - (across - 1) / 2) * (sizes.width + GAP_X),
        y: y + (line - (lines - 1) / 2) * (sizes.height + GAP_Y),
        width: sizes.width,
        height: sizes.height,
      };
    });
  });
}

function curvesOf(edges: readonly DrawnEdge[], boxes: readonly Box[], largest: ReadonlyMap<string, number>): Curve[] {
  const at = new Map(boxes.map((box) => [box.node.id, box]));
  return edges.flatMap((edge): Curve[] => {
    const parent = at.get(edge.from);
    const child = at.get(edge.to);
    if (!parent || !child) return [];
    const share = shareOf(edge.attribution, largest.get(edge.to));
    return [{ edge, x1: parent.x, y1: parent.y - parent.height / 2, x2: child.x, y2: child.y + child.height / 2, share }];
  });
}

/** How far the two handles of a curve lie from its ends. */
export const bend = ({ y1, y2 }: Pick<Curve, "y1" | "y2">): number => Math.max(14, Math.abs(y1 - y2) * 0.45);

/** The point of a curve at `t` from 0, its parent, to 1, its child. */
export function pointOn(curve: Curve, t: number): [x: number, y: number] {
  const { x1, y1, x2, y2 } = curve;
  const handle = bend(curve);
  const s = 1 - t;
  const [a, b, c, d] = [s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t];
  return [(a + b) * x1 + (c + d) * x2, a * y1 + b * (y1 - handle) + c * (y2 + handle) + d * y2];
}

/** The width of an edge's line, in pixels. */
export const strokeWidth = (share: number): number => 0.75 + 4.25 * share;
