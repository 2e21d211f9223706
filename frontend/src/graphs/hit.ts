/** What of a picture lies under the pointer. */

import Flatbush from "flatbush";
import { pointOn, strokeWidth, type Box, type Curve, type Picture } from "./layout";

/** Straight pieces that a curve is cut into; their boxes are small even where the curve is long. */
const PIECES = 12;
/** How near the pointer must be to an edge, in pixels. */
const NEAR = 5;

export type Hit = { box: Box; curve?: undefined } | { curve: Curve; box?: undefined };

/** An index over boxes and curves: a question costs microseconds, however many edges there are. */
export class HitIndex {
  private readonly nodes: Flatbush | null;
  private readonly pieces: Flatbush | null;
  /** The ends of every piece: x, y, x, y. */
  private readonly ends: Float64Array;

  constructor(private readonly picture: Picture) {
    const { boxes, curves } = picture;
    this.nodes = boxes.length > 0 ? new Flatbush(boxes.length) : null;
    for (const { x, y, width, height } of boxes) this.nodes!.add(x - width / 2, y - height / 2, x + width / 2, y + height / 2);
    this.nodes?.finish();
    this.pieces = curves.length > 0 ? new Flatbush(curves.length * PIECES) : null;
    this.ends = new Float64Array(curves.length * PIECES * 4);
    curves.forEach((curve, at) => this.addCurve(curve, at));
    this.pieces?.finish();
  }

  private addCurve(curve: Curve, at: number): void {
    let [x, y] = pointOn(curve, 0);
    for (let piece = 1; piece <= PIECES; piece += 1) {
      const [nextX, nextY] = pointOn(curve, piece / PIECES);
      this.pieces!.add(Math.min(x, nextX), Math.min(y, nextY), Math.max(x, nextX), Math.max(y, nextY));
      this.ends.set([x, y, nextX, nextY], (at * PIECES + piece - 1) * 4);
      [x, y] = [nextX, nextY];
    }
  }

  /** The node there, or else the nearest edge; of two equally near the one on top. */
  at(x: number, y: number): Hit | null {
    const box = this.nodes?.search(x, y, x, y)[0];
    if (box !== undefined) return { box: this.picture.boxes[box]! };
    let best: Curve | null = null;
    let least = Infinity;
    for (const piece of this.pieces?.search(x - NEAR, y - NEAR, x + NEAR, y + NEAR) ?? []) {
      const curve = this.picture.curves[Math.floor(piece / PIECES)]!;
      const away = Math.max(0, this.away(piece, x, y) - strokeWidth(curve.share) / 2);
      if (away > NEAR || away > least || (away === least && best !== null && curve.share < best.share)) continue;
      [best, least] = [curve, away];
    }
    return best && { curve: best };
  }

  /** Distance of a point from a piece. */
  private away(piece: number, x: number, y: number): number {
    const [x1, y1, x2, y2] = this.ends.subarray(piece * 4, piece * 4 + 4) as unknown as [number, number, number, number];
    const [dx, dy] = [x2 - x1, y2 - y1];
    const length = dx * dx + dy * dy;
    const t = length === 0 ? 0 : Math.max(0, Math.min(1, ((x - x1) * dx + (y - y1) * dy) / length));
    return Math.hypot(x - x1 - t * dx, y - y1 - t * dy);
  }
}
