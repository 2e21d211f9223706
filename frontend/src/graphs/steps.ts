/** Which node the arrow keys lead to. */

import { isTarget } from "./fold";
import type { Box, Picture } from "./layout";

export type Arrow = "ArrowUp" | "ArrowDown" | "ArrowLeft" | "ArrowRight";

const nearest = (boxes: readonly Box[], away: (box: Box) => number): Box | undefined =>
  boxes.reduce<Box | undefined>((best, box) => (best === undefined || away(box) < away(best) ? box : best), undefined);

/** The next node in that direction: beside it on the same line, or the nearest on the next line above or below. */
export function stepped(picture: Picture, from: string | null, arrow: Arrow): string | null {
  const { boxes } = picture;
  const at = boxes.find((box) => box.node.id === from);
  if (!at) return boxes.find((box) => isTarget(box.node))?.node.id ?? boxes[0]?.node.id ?? null;
  if (arrow === "ArrowLeft" || arrow === "ArrowRight") {
    const sign = arrow === "ArrowRight" ? 1 : -1;
    const beside = boxes.filter((box) => box.y === at.y && (box.x - at.x) * sign > 0);
    return nearest(beside, (box) => Math.abs(box.x - at.x))?.node.id ?? at.node.id;
  }
  const sign = arrow === "ArrowDown" ? 1 : -1;
  const beyond = boxes.filter((box) => (box.y - at.y) * sign > 0);
  const line = nearest(beyond, (box) => Math.abs(box.y - at.y))?.y;
  return nearest(beyond.filter((box) => box.y === line), (box) => Math.abs(box.x - at.x))?.node.id ?? at.node.id;
}
