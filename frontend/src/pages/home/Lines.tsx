import { useEffect, useState, type RefObject } from "react";
import styles from "./Home.module.css";

interface LinesProps {
  area: RefObject<HTMLDivElement | null>;
  edges: readonly { source: string; target: string }[];
  /** The box whose lines stand out. */
  lit: string | null;
}

interface Line {
  key: string;
  source: string;
  target: string;
  path: string;
}

/** A curve from the right side of one box to the left side of another. */
function curve(from: DOMRect, to: DOMRect, origin: DOMRect): string {
  const x1 = from.right - origin.left;
  const y1 = from.top + Math.min(from.height / 2, 22) - origin.top;
  const x2 = to.left - origin.left;
  const y2 = to.top + Math.min(to.height / 2, 22) - origin.top;
  const bend = Math.max(12, (x2 - x1) / 2);
  return `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}`;
}

/** The lines between the boxes, measured from where the boxes came to lie. */
export function Lines({ area, edges, lit }: LinesProps) {
  const [lines, setLines] = useState<Line[]>([]);
  // Not a layout effect: those run before the surrounding element is known.
  useEffect(() => {
    const element = area.current;
    if (!element) return;
    const measure = () => {
      const origin = element.getBoundingClientRect();
      const boxes = new Map([...element.querySelectorAll<HTMLElement>("[data-node]")].map((box) => [box.dataset.node, box.getBoundingClientRect()]));
      setLines(
        edges.flatMap(({ source, target }) => {
          const from = boxes.get(source);
          const to = boxes.get(target);
          return from && to ? [{ key: `${source} ${target}`, source, target, path: curve(from, to, origin) }] : [];
        }),
      );
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    for (const box of element.querySelectorAll("[data-node]")) observer.observe(box);
    return () => observer.disconnect();
  }, [area, edges]);

  return (
    <svg className={styles.lines} aria-hidden="true">
      {lines.map((line) => <path key={line.key} d={line.path} data-lit={lit === line.source || lit === line.target} />)}
    </svg>
  );
}
