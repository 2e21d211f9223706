import { ActionIcon, useComputedColorScheme } from "@mantine/core";
import { useEffect, useMemo, useRef, useState, type KeyboardEvent, type PointerEvent } from "react";
import { isTarget, type DrawnEdge } from "@/graphs/fold";
import { HitIndex, type Hit } from "@/graphs/hit";
import type { Picture as Laid } from "@/graphs/layout";
import { DARK_INK, LIGHT_INK } from "@/graphs/look";
import { Links, onPath, type Reach } from "@/graphs/reach";
import { stepped, type Arrow } from "@/graphs/steps";
import { Canvases, type Lit } from "./Canvases";
import styles from "./Graphs.module.css";

interface PictureProps {
  picture: Laid;
  /** The texts over its columns. */
  heads: readonly string[];
  /** Short words inside the boxes, by drawn node. */
  names: ReadonlyMap<string, string>;
  pinned: ReadonlySet<string>;
  marked: ReadonlySet<string>;
  /** The selected node, or edge by its key. */
  node: string | null;
  edge: string | null;
  /** What is said of a node or an edge, on hover and to screen readers. */
  say: (hit: { node: string } | { edge: DrawnEdge }) => string;
  onNode: (id: string | null) => void;
  onEdge: (edge: DrawnEdge) => void;
  onPin: (id: string) => void;
  onMark: (id: string) => void;
  /** Go on to what is known of the selected node. */
  onOpen: () => void;
  /** How wide the picture may be. */
  onRoom: (width: number) => void;
}

/** As small as it must be to fit the width, within what can still be read. */
const fitting = (room: number, width: number): number => (room > 0 && width > 0 ? Math.min(1, Math.max(0.7, room / width)) : 1);

const zoomed = (zoom: number, larger: boolean): number => Math.min(2, Math.max(0.25, zoom * (larger ? 1.25 : 0.8)));

const keyOf = (hit: Hit | null) => hit?.box?.node.id ?? hit?.curve?.edge.key ?? null;

/** The graph as a picture, by pointer and by keyboard. */
export function Picture({ picture, heads, names, pinned, marked, node, edge, say, onNode, onEdge, onPin, onMark, onOpen, onRoom }: PictureProps) {
  const ink = useComputedColorScheme("light") === "dark" ? DARK_INK : LIGHT_INK;
  const scroll = useRef<HTMLDivElement>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  const [hover, setHover] = useState<{ hit: Hit; x: number; y: number } | null>(null);
  const [chosen, setZoom] = useState<number | null>(null);
  const zoom = chosen ?? fitting(size.width, picture.width);
  const index = useMemo(() => new HitIndex(picture), [picture]);
  const links = useMemo(() => new Links(picture.curves.map((curve) => curve.edge)), [picture]);

  const litNode = hover ? hover.hit.box?.node.id : (node ?? undefined);
  const litEdge = hover ? hover.hit.curve?.edge.key : (edge ?? undefined);
  const lit = useMemo(() => litOf(picture, links, litNode, litEdge), [picture, links, litNode, litEdge]);

  const rings = useMemo(() => picture.boxes.filter((box) => box.node.id === node || marked.has(box.node.id)), [picture, node, marked]);

  useEffect(() => {
    const element = scroll.current;
    if (!element) return;
    const observer = new ResizeObserver(() => {
      setSize({ width: element.clientWidth, height: element.clientHeight });
      onRoom(element.clientWidth);
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, [onRoom]);

  // The selected node, or else the target, must be in sight.
  useEffect(() => {
    const box = picture.boxes.find((one) => (node === null ? isTarget(one.node) : one.node.id === node));
    const element = scroll.current;
    if (!box || !element || size.width === 0) return;
    const inside = (at: number, from: number, length: number, margin: number) => Math.min(Math.max(from, at + margin - length), Math.max(0, at - margin));
    element.scrollTo({ left: inside(box.x * zoom, element.scrollLeft, size.width, 90), top: inside(box.y * zoom, element.scrollTop, size.height, 60) });
  }, [node, picture, size, zoom]);

  const hitAt = (event: PointerEvent): { hit: Hit | null; x: number; y: number } => {
    const bounds = scroll.current!.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    return { hit: index.at((x + scroll.current!.scrollLeft) / zoom, (y + scroll.current!.scrollTop) / zoom), x, y };
  };
  const onPointerMove = (event: PointerEvent) => {
    const { hit, x, y } = hitAt(event);
    if (keyOf(hit) !== keyOf(hover?.hit ?? null)) setHover(hit && { hit, x, y });
  };
  const onPointerDown = (event: PointerEvent) => {
    if (event.button !== 0) return;
    const { hit } = hitAt(event);
    if (!hit) onNode(null);
    else if (hit.curve) onEdge(hit.curve.edge);
    else if (event.shiftKey) onMark(hit.box.node.id);
    else onNode(hit.box.node.id);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) onNode(stepped(picture, node, event.key as Arrow));
    else if (event.key === "Enter" && (node ?? edge)) onOpen();
    else if (event.key === "p" && node) onPin(node);
    else if (event.key === "m" && node) onMark(node);
    else if (event.key === "Escape") onNode(null);
    else if (event.key === "+" || event.key === "-") setZoom(zoomed(zoom, event.key === "+"));
    else if (event.key === "0") setZoom(null);
    else return;
    event.preventDefault();
  };

  const pointed = hover && say(hover.hit.box ? { node: hover.hit.box.node.id } : { edge: hover.hit.curve.edge });
  return (
    <div className={styles.frame} data-testid="graph-picture" data-nodes={picture.boxes.length} data-edges={picture.curves.length}>
      <div
        ref={scroll}
        className={styles.scroll}
        tabIndex={0}
        role="application"
        aria-label={`Graph of ${picture.boxes.length} nodes and ${picture.curves.length} edges. Arrow keys move between nodes, Enter opens one, p pins it, m marks it for a group. The same as a table: the button Table.`}
        style={{ cursor: hover ? "pointer" : undefined }}
        onPointerMove={onPointerMove}
        onPointerLeave={() => setHover(null)}
        onPointerDown={onPointerDown}
        onKeyDown={onKeyDown}
        data-testid="graph-canvas"
      >
        <div style={{ width: picture.width * zoom, height: picture.height * zoom }}>
          <Canvases scroll={scroll} size={size} zoom={zoom} picture={picture} heads={heads} names={names} pinned={pinned} lit={lit} rings={rings} ink={ink} />
        </div>
      </div>
      <div className={styles.zoom} role="group" aria-label="Zoom">
        <ActionIcon size={24} variant="default" onClick={() => setZoom(zoomed(zoom, false))} aria-label="Smaller" title="Smaller (-)"><span aria-hidden="true">−</span></ActionIcon>
        <ActionIcon size={24} variant="default" onClick={() => setZoom(null)} aria-label="Fit the width" title="Fit the width (0)"><span aria-hidden="true">↔</span></ActionIcon>
        <ActionIcon size={24} variant="default" onClick={() => setZoom(zoomed(zoom, true))} aria-label="Larger" title="Larger (+)"><span aria-hidden="true">+</span></ActionIcon>
      </div>
      {hover && <div className={styles.tip} style={tipPlace(hover, size)} data-testid="graph-tip">{pointed}</div>}
      <p className="visually-hidden" aria-live="polite" data-testid="graph-spoken">{node && picture.boxes.some((box) => box.node.id === node) ? say({ node }) : ""}</p>
    </div>
  );
}

/** A node with everything on paths through it, or an edge with its ends. */
function litOf(picture: Laid, links: Links, node: string | undefined, edge: string | undefined): Lit | null {
  if (edge !== undefined) {
    const curves = picture.curves.filter((curve) => curve.edge.key === edge);
    return curves[0] ? { curves, boxes: picture.boxes.filter((box) => [curves[0]!.edge.from, curves[0]!.edge.to].includes(box.node.id)) } : null;
  }
  if (node === undefined || !picture.boxes.some((box) => box.node.id === node)) return null;
  const reach: Reach = links.reachOf(node);
  return {
    curves: picture.curves.filter((curve) => onPath(curve.edge, node, reach)),
    boxes: picture.boxes.filter(({ node: { id } }) => id === node || reach.ancestors.has(id) || reach.descendants.has(id)),
  };
}

/** Beside the pointer, on the side where there is room. */
function tipPlace({ x, y }: { x: number; y: number }, size: { width: number; height: number }) {
  return {
    ...(x > size.width / 2 ? { right: size.width - x + 12 } : { left: x + 12 }),
    ...(y > size.height / 2 ? { bottom: size.height - y + 12 } : { top: y + 12 }),
  };
}
