import { useState } from "react";
import { compact, number } from "@/science/format";
import { Plot } from "./Plot";
import styles from "./Plot.module.css";
import { ends } from "./scale";

export interface Series {
  x: readonly number[];
  y: readonly (number | null)[];
}

interface LineChartProps {
  title: string;
  xLabel: string;
  series: Series;
  logarithmic?: boolean;
  height?: number;
  /** How a value is written on the axis and on hover. */
  show?: (value: number | null) => string;
}

/** One curve over training tokens or steps. */
export function LineChart({
  title, xLabel, series: { x, y }, logarithmic = false, height = 150, show = (value) => number(value, 3),
}: LineChartProps) {
  const [cursor, setCursor] = useState<number | null>(null);
  const at = Math.min(cursor ?? x.length - 1, x.length - 1);
  const value = y[at] ?? null;
  const known = y.filter((one) => one !== null);
  return (
    <Plot
      title={title}
      spoken={`${title} over ${xLabel}: ${x.length} points, newest ${show(y.at(-1) ?? null)}${logarithmic ? ", logarithmic axis" : ""}. Arrow keys read the points.`}
      readout={x.length > 0 && `${show(value)} at ${compact(x[at])} ${xLabel}`}
      height={height}
      left={58}
      x={{ low: x[0] ?? 0, high: x.at(-1) ?? 1, show: compact }}
      y={{ ...ends(known, logarithmic), logarithmic, show }}
      cursor={{ values: x, at: cursor, onMove: setCursor }}
    >
      {(area) => (
        <>
          <path className={styles.curve} d={pathOf(x.map(area.x), y.map((one) => (one === null ? null : area.y(one))))} />
          {cursor !== null && <line className={styles.grid} x1={area.x(x[at]!)} x2={area.x(x[at]!)} y1={area.top} y2={area.bottom} />}
          {value !== null && (cursor !== null || known.length === 1) && <circle className={styles.dot} cx={area.x(x[at]!)} cy={area.y(value)} r={3} />}
        </>
      )}
    </Plot>
  );
}

/** A line through the points, broken where a value is missing. */
function pathOf(xs: readonly number[], ys: readonly (number | null)[]): string {
  return ys
    .map((y, place) => (y === null ? "" : `${place > 0 && ys[place - 1] !== null ? "L" : "M"}${xs[place]!.toFixed(1)} ${y.toFixed(1)}`))
    .join("");
}
