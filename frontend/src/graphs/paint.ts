/** Draws a picture on canvases: edges, nodes, and what is lit, each on its own. */

import { bend, GUTTER, HEAD, pointOn, type Box, type Column, type Curve, type Picture } from "./layout";
import { boxLook, lineLook, type Ink } from "./look";

type Pen = CanvasRenderingContext2D;

/** Part of a picture that is on screen, in the picture's own units, of which `zoom` pixels make one. */
export interface Viewport {
  x: number;
  y: number;
  width: number;
  height: number;
  zoom: number;
}

export const FONT = '11px ui-monospace, "SF Mono", "Cascadia Code", "DejaVu Sans Mono", Menlo, Consolas, monospace';

/** Make a canvas as sharp as the screen, empty it, and move its origin to the picture's. */
export function prepared(canvas: HTMLCanvasElement, { x, y, width, height, zoom }: Viewport): Pen | null {
  const ratio = (window.devicePixelRatio || 1) * zoom;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const pen = canvas.getContext("2d");
  if (!pen) return null;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.translate(-x, -y);
  return pen;
}

const outside = (view: Viewport, left: number, top: number, right: number, bottom: number) =>
  right < view.x || left > view.x + view.width || bottom < view.y || top > view.y + view.height;

export function paintCurves(pen: Pen, curves: readonly Curve[], ink: Ink, view: Viewport, strong = false): void {
  pen.lineCap = "butt";
  for (const curve of curves) {
    const { x1, y1, x2, y2 } = curve;
    if (outside(view, Math.min(x1, x2) - 8, Math.min(y1, y2) - 60, Math.max(x1, x2) + 8, Math.max(y1, y2) + 60)) continue;
    const look = lineLook(curve, ink);
    const handle = bend(curve);
    pen.globalAlpha = strong ? 1 : look.opacity;
    pen.strokeStyle = look.color;
    pen.lineWidth = strong ? look.width + 0.75 : look.width;
    pen.setLineDash(look.dashes);
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.bezierCurveTo(x1, y1 - handle, x2, y2 + handle, x2, y2);
    pen.stroke();
    if (look.state === "refuted") strike(pen, curve);
  }
  pen.globalAlpha = 1;
  pen.setLineDash([]);
}

/** A short stroke across the middle. */
function strike(pen: Pen, curve: Curve): void {
  const [x, y] = pointOn(curve, 0.5);
  pen.setLineDash([]);
  pen.lineWidth = 1.75;
  pen.beginPath();
  pen.moveTo(x - 6, y + 4);
  pen.lineTo(x + 6, y - 4);
  pen.stroke();
}

export interface NodeState {
  pinned: ReadonlySet<string>;
  names: ReadonlyMap<string, string>;
}

export function paintBoxes(pen: Pen, boxes: readonly Box[], ink: Ink, view: Viewport, { pinned, names }: NodeState): void {
  pen.font = FONT;
  pen.textBaseline = "middle";
  for (const box of boxes) {
    const [left, top] = [box.x - box.width / 2, box.y - box.height / 2];
    if (outside(view, left - 4, top - 4, left + box.width + 4, top + box.height + 4)) continue;
    const look = boxLook(box, ink, pinned.has(box.node.id), names.get(box.node.id) ?? "");
    pen.lineWidth = look.lineWidth;
    pen.strokeStyle = look.stroke;
    if (look.stacked) rounded(pen, left + 3, top - 3, box, look.radius, ink.surface);
    rounded(pen, left, top, box, look.radius, look.fill);
    if (box.width < 20) continue;
    const [first, more] = look.words;
    const width = pen.measureText(first).width;
    const rest = more ? pen.measureText(more).width + 6 : 0;
    const start = box.x - (width + rest) / 2;
    pen.fillStyle = look.text;
    pen.fillText(first, start, box.y + 0.5);
    if (!more) continue;
    pen.fillStyle = ink.dimmed;
    pen.fillText(more, start + width + 6, box.y + 0.5);
  }
}

function rounded(pen: Pen, x: number, y: number, { width, height }: Box, radius: number, fill: string): void {
  pen.beginPath();
  pen.roundRect(x, y, width, height, radius);
  pen.fillStyle = fill;
  pen.fill();
  pen.stroke();
}

/** A ring around the selected node. */
export function paintRing(pen: Pen, { x, y, width, height }: Box, ink: Ink): void {
  pen.strokeStyle = ink.accent;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.roundRect(x - width / 2 - 4, y - height / 2 - 4, width + 8, height + 8, 8);
  pen.stroke();
}

/** Rules between the layers. */
export function paintRules(pen: Pen, picture: Picture, ink: Ink, view: Viewport): void {
  pen.strokeStyle = ink.line;
  pen.lineWidth = 1;
  pen.globalAlpha = 0.6;
  for (const { y, height } of picture.rows) {
    const rule = Math.round(y + height / 2) + 0.5;
    pen.beginPath();
    pen.moveTo(view.x, rule);
    pen.lineTo(view.x + view.width, rule);
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/** The names of the layers and the tokens, which stay in sight when the picture is scrolled. */
export function paintNames(pen: Pen, picture: Picture, heads: readonly string[], ink: Ink, view: Viewport): void {
  pen.font = FONT;
  pen.textBaseline = "middle";
  pen.fillStyle = ink.surface;
  // In pixels of the screen: words that shrink with the picture could not be read.
  const { x, y, zoom } = view;
  pen.translate(x, y);
  pen.scale(1 / zoom, 1 / zoom);
  pen.fillRect(0, 0, view.width * zoom, HEAD - 10);
  pen.textAlign = "center";
  picture.columns.forEach((column, at) => paintHead(pen, { ...column, x: (column.x - x) * zoom, width: column.width * zoom }, heads[at] ?? "", ink));
  pen.fillStyle = ink.surface;
  pen.fillRect(0, 0, GUTTER - 4, view.height * zoom);
  pen.textAlign = "left";
  pen.fillStyle = ink.dimmed;
  for (const row of picture.rows) {
    const at = (row.y - y) * zoom;
    if (at > HEAD - 8) pen.fillText(rowName(row), 6, at);
  }
}

export const rowName = ({ target, layer }: { target: boolean; layer: number }): string =>
  target ? "target" : layer < 0 ? "embed" : `block ${layer}`;

function paintHead(pen: Pen, { x, width, gap }: Column, words: string, ink: Ink): void {
  pen.fillStyle = ink.text;
  const fits = Math.max(2, Math.floor((width - 6) / 6.7));
  pen.fillText(words.length > fits ? `${words.slice(0, fits - 1)}…` : words, x, 12);
  if (!gap) return;
  pen.fillStyle = ink.dimmed;
  pen.fillText("⋯", x - width / 2, 12);
}
