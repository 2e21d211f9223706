import { useEffect, useEffectEvent, useRef, type RefObject } from "react";
import type { Box, Curve, Picture } from "@/graphs/layout";
import type { Ink } from "@/graphs/look";
import { paintBoxes, paintCurves, paintNames, paintRing, paintRules, prepared } from "@/graphs/paint";
import styles from "./Graphs.module.css";

/** What stands out while the rest is faint. */
export interface Lit {
  boxes: Box[];
  curves: Curve[];
}

interface CanvasesProps {
  /** What scrolls the picture. */
  scroll: RefObject<HTMLDivElement | null>;
  /** In pixels of the screen. */
  size: { width: number; height: number };
  zoom: number;
  picture: Picture;
  heads: readonly string[];
  names: ReadonlyMap<string, string>;
  pinned: ReadonlySet<string>;
  lit: Lit | null;
  /** Boxes with a ring around them. */
  rings: readonly Box[];
  ink: Ink;
}

/** Four layers, so that what changes often is painted alone: edges, nodes, what is lit, and the names above them. */
export function Canvases({ scroll, size, zoom, picture, heads, names, pinned, lit, rings, ink }: CanvasesProps) {
  const edges = useRef<HTMLCanvasElement>(null);
  const boxes = useRef<HTMLCanvasElement>(null);
  const front = useRef<HTMLCanvasElement>(null);
  const words = useRef<HTMLCanvasElement>(null);

  const view = () => ({ x: (scroll.current?.scrollLeft ?? 0) / zoom, y: (scroll.current?.scrollTop ?? 0) / zoom, width: size.width / zoom, height: size.height / zoom, zoom });
  const on = (canvas: RefObject<HTMLCanvasElement | null>) => canvas.current && prepared(canvas.current, view());
  const paintAll = useEffectEvent(() => {
    const under = on(edges);
    if (under) {
      paintRules(under, picture, ink, view());
      paintCurves(under, picture.curves, ink, view());
    }
    const middle = on(boxes);
    if (middle) paintBoxes(middle, picture.boxes, ink, view(), { pinned, names });
    const above = on(words);
    if (above) paintNames(above, picture, heads, ink, view());
  });
  const paintLit = useEffectEvent(() => {
    const pen = on(front);
    if (!pen) return;
    if (lit) {
      paintCurves(pen, lit.curves, ink, view(), true);
      paintBoxes(pen, lit.boxes, ink, view(), { pinned, names });
    }
    for (const box of rings) paintRing(pen, box, ink);
  });
  useEffect(() => paintAll(), [picture, heads, names, pinned, ink, size, zoom]);
  useEffect(() => paintLit(), [picture, names, pinned, ink, size, zoom, lit, rings]);

  const scrolled = useEffectEvent(() => {
    paintAll();
    paintLit();
  });
  useEffect(() => {
    const element = scroll.current;
    let frame = 0;
    const later = () => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => scrolled());
    };
    element?.addEventListener("scroll", later, { passive: true });
    return () => {
      cancelAnimationFrame(frame);
      element?.removeEventListener("scroll", later);
    };
  }, [scroll]);

  const faint = lit ? styles.faint : undefined;
  return (
    <div className={styles.stage} style={size}>
      <canvas ref={edges} className={faint} />
      <canvas ref={boxes} className={faint} />
      <canvas ref={front} />
      <canvas ref={words} />
    </div>
  );
}
