import { useElementSize } from "@mantine/hooks";
import type { KeyboardEvent, PointerEvent, ReactNode } from "react";
import styles from "./Plot.module.css";
import { scale, ticks, type Axis } from "./scale";

const TOP = 6;
const RIGHT = 10;
const BOTTOM = 18;
const WIDTH_UNTIL_MEASURED = 300;
const TICK_WIDTH = 56;
const TICK_HEIGHT = 28;

/** Where things lie inside a plot, in pixels. */
export interface Area {
  x: (value: number) => number;
  y: (value: number) => number;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Values that the pointer and the arrow keys go through. */
interface Cursor {
  values: readonly number[];
  at: number | null;
  onMove: (at: number | null) => void;
}

interface PlotProps {
  title: string;
  /** What the drawing says to those who can't see it. */
  spoken: string;
  height: number;
  x: Axis;
  /** Drawn with grid lines; without it `y` of the area goes from 0 at the bottom to 1 at the top. */
  y?: Axis;
  /** Pixels left of the drawing, for names or numbers. */
  left?: number;
  /** Beside the title: the value under the pointer. */
  readout?: ReactNode;
  /** Below the axis: what it measures. */
  note?: string;
  cursor?: Cursor;
  children: (area: Area) => ReactNode;
}

/** The frame that all charts share: title, axes, and a cursor for the pointer and the arrow keys. */
export function Plot({ title, spoken, height, x, y, left = 6, readout, note, cursor, children }: PlotProps) {
  const { ref, width } = useElementSize();
  const whole = Math.max(left + RIGHT + 1, width || WIDTH_UNTIL_MEASURED);
  const area: Area = { left, right: whole - RIGHT, top: TOP, bottom: height - BOTTOM, x: () => 0, y: () => 0 };
  area.x = scale(x, area.left, area.right);
  area.y = scale(y ?? { low: 0, high: 1, show: String }, area.bottom, area.top);

  const onKeyDown = (event: KeyboardEvent) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!cursor || step === 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    cursor.onMove(Math.max(0, Math.min(cursor.values.length - 1, (cursor.at ?? -step) + step)));
  };
  const onPointerMove = (event: PointerEvent<SVGSVGElement>) => {
    const place = event.clientX - event.currentTarget.getBoundingClientRect().left;
    cursor?.onMove(nearest(cursor.values.map(area.x), place));
  };

  return (
    <figure className={styles.figure} ref={ref}>
      <figcaption className={styles.caption}>
        <span className={styles.title}>{title}</span>
        <span className={styles.readout} aria-live={cursor?.at == null ? "off" : "polite"}>{readout}</span>
      </figcaption>
      <svg
        className={styles.svg}
        width={whole}
        height={height}
        role="img"
        aria-label={spoken}
        {...(cursor && { tabIndex: 0, onKeyDown, onPointerMove, onBlur: () => cursor.onMove(null), onPointerLeave: () => cursor.onMove(null) })}
      >
        {y && ticks(y, Math.max(2, Math.floor((area.bottom - area.top) / TICK_HEIGHT))).map((tick) => (
          <g key={tick}>
            <line className={styles.grid} x1={area.left} x2={area.right} y1={area.y(tick)} y2={area.y(tick)} />
            <text className={styles.tick} x={area.left - 6} y={area.y(tick) + 3.5} textAnchor="end">{y.show(tick)}</text>
          </g>
        ))}
        {children(area)}
        <line className={styles.axis} x1={area.left} x2={area.right} y1={area.bottom + 0.5} y2={area.bottom + 0.5} />
        {ticks(x, Math.max(2, Math.floor((area.right - area.left) / TICK_WIDTH))).map((tick) => (
          <text key={tick} className={styles.tick} x={area.x(tick)} y={height - 4} textAnchor={anchor(area, area.x(tick))}>{x.show(tick)}</text>
        ))}
      </svg>
      {note && <div className={styles.caption}>{note}</div>}
    </figure>
  );
}

/** The ends of an axis keep their numbers inside the drawing. */
function anchor({ left, right }: Area, place: number): "start" | "middle" | "end" {
  if (place < left + 12) return "start";
  return place > right - 12 ? "end" : "middle";
}

function nearest(places: readonly number[], wanted: number): number | null {
  let found: number | null = null;
  for (const [index, place] of places.entries()) {
    if (found === null || Math.abs(place - wanted) < Math.abs(places[found]! - wanted)) found = index;
  }
  return found;
}
