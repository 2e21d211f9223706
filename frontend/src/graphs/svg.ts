/** A picture as an SVG file: the same as on screen, on its own surface, with what it shows in words. */

import { bend, GUTTER, HEAD, pointOn, type Box, type Curve, type Picture } from "./layout";
import { boxLook, lineLook, type Ink } from "./look";
import { rowName, type NodeState } from "./paint";

const round = (value: number) => Math.round(value * 10) / 10;

/** Text in XML: signs with a meaning are written out, those XML cannot hold are left out. */
export const escaped = (text: string): string =>
  // eslint-disable-next-line no-control-regex -- control characters are just what XML has no place for
  text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "").replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

interface Drawing extends NodeState {
  picture: Picture;
  /** The tokens over the columns. */
  heads: readonly string[];
  title: string;
  /** What it shows, under the picture. */
  legend: string;
}

const LEGEND = 30;

export function svgOf({ picture, heads, title, legend, pinned, names }: Drawing, ink: Ink): string {
  const width = Math.ceil(Math.max(picture.width, 480));
  const height = Math.ceil(picture.height + LEGEND);
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<rect width="100%" height="100%" fill="${ink.surface}"/>`,
    ...picture.rows.map((row) => `<path d="M0 ${round(row.y + row.height / 2)}H${width}" stroke="${ink.line}" opacity="0.6"/>`),
    ...picture.curves.map((curve) => curveSvg(curve, ink)),
    ...picture.boxes.map((box) => boxSvg(box, ink, pinned.has(box.node.id), names.get(box.node.id) ?? "")),
    ...picture.rows.map((row) => `<text x="6" y="${round(row.y + 4)}" fill="${ink.dimmed}">${escaped(rowName(row))}</text>`),
    ...picture.columns.map((column, at) => `<text x="${round(column.x)}" y="${HEAD - 18}" text-anchor="middle" fill="${ink.text}">${escaped(heads[at] ?? "")}</text>`),
    `<text x="${GUTTER}" y="${height - 10}" fill="${ink.dimmed}">${escaped(legend)}</text>`,
    "</svg>",
  ];
  return parts.join("\n");
}

function curveSvg(curve: Curve, ink: Ink): string {
  const { x1, y1, x2, y2 } = curve;
  const look = lineLook(curve, ink);
  const handle = bend(curve);
  const dashes = look.dashes.length > 0 ? ` stroke-dasharray="${look.dashes.join(" ")}"` : "";
  const path = `M${round(x1)} ${round(y1)}C${round(x1)} ${round(y1 - handle)} ${round(x2)} ${round(y2 + handle)} ${round(x2)} ${round(y2)}`;
  const line = `<path d="${path}" fill="none" stroke="${look.color}" stroke-width="${round(look.width)}" opacity="${round(look.opacity)}"${dashes}/>`;
  if (look.state !== "refuted") return line;
  const [x, y] = pointOn(curve, 0.5);
  return `${line}<path d="M${round(x - 6)} ${round(y + 4)}L${round(x + 6)} ${round(y - 4)}" stroke="${look.color}" stroke-width="1.8"/>`;
}

function boxSvg(box: Box, ink: Ink, pinned: boolean, name: string): string {
  const look = boxLook(box, ink, pinned, name);
  const [left, top] = [box.x - box.width / 2, box.y - box.height / 2];
  const rect = (x: number, y: number, fill: string) =>
    `<rect x="${round(x)}" y="${round(y)}" width="${box.width}" height="${box.height}" rx="${look.radius}" fill="${fill}" stroke="${look.stroke}" stroke-width="${look.lineWidth}"/>`;
  const [first, more] = look.words;
  const words = box.width < 20 ? "" : `<text x="${round(box.x)}" y="${round(box.y + 4)}" text-anchor="middle" fill="${look.text}">${escaped(first)}${more ? `<tspan dx="6" fill="${ink.dimmed}">${escaped(more)}</tspan>` : ""}</text>`;
  return (look.stacked ? rect(left + 3, top - 3, ink.surface) : "") + rect(left, top, look.fill) + words;
}
