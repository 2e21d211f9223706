/** Which node the arrow keys lead to. */

import { isTarget } from "./fold";
import type { Box, Picture } from "./layout";

export type Arrow = "ArrowUp" | "ArrowDown" | "ArrowLeft" | "ArrowRight";

const nearest = (boxes: readonly Box[], away: (box: Box) => number): Box | undefined =>
  boxes.reduce<Box | undefined>((best, box) => (best === undefined || away(box) < away(best) ? box : best), undefined);

/** Leaving the line weighs so much more than going along it. */
const ASIDE = 4;

/** The nearest node in that direction. */
export function stepped(picture: Picture, from: string | null, arrow: Arrow): string | null {
  const { boxes } = picture;
  const at = boxes.find((box) => box.node.id === from);
  if (!at) return boxes.find((box) => isTarget(box.node))?.node.id ?? boxes[0]?.node.id ?? null;
  const sign = arrow === "ArrowRight" || arrow === "ArrowDown" ? 1 : -1;
  const across = arrow === "ArrowLeft" || arrow === "ArrowRight";
  const beyond = boxes.filter((box) => (across ? box.x - at.x : box.y - at.y) * sign > 0);
  const away = ({ x, y }: Box) => (across ? Math.abs(x - at.x) + ASIDE * Math.abs(y - at.y) : Math.abs(y - at.y) + Math.abs(x - at.x));
  return nearest(beyond, away)?.node.id ?? at.node.id;
}
