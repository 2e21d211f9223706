import { useComputedColorScheme } from "@mantine/core";
import { useElementSize } from "@mantine/hooks";
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import { compact, number } from "@/science/format";
import { DARK, LIGHT } from "@/science/palette";
import styles from "./Histogram.module.css";
import "uplot/dist/uPlot.min.css";

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

/* eslint-disable @typescript-eslint/no-unsafe-enum-assignment -- the library declares an enum that has no values */
const LINEAR = 1 as uPlot.Scale.Distr;
const LOGARITHMIC = 3 as uPlot.Scale.Distr;
/* eslint-enable @typescript-eslint/no-unsafe-enum-assignment */

/** From zero to a little above the largest value, also for a curve that is zero throughout. */
function fromZero(_: uPlot, low: number | null, high: number | null): [number, number] {
  const top = high ?? 1;
  return [Math.min(0, low ?? 0), top > 0 ? top * 1.08 : 1];
}

/** One curve over training tokens or steps, redrawn in place while points arrive. */
export default function LineChart({
  title, xLabel, series, logarithmic = false, height = 150, show = (value) => number(value, 3),
}: LineChartProps) {
  const { ref: box, width } = useElementSize();
  const chart = useRef<uPlot | null>(null);
  const holder = useRef<HTMLDivElement>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const scheme = useComputedColorScheme("light");
  const latest = useRef(series);

  useEffect(() => {
    latest.current = series;
    chart.current?.setData([series.x as number[], series.y as (number | null)[]]);
  }, [series]);

  useEffect(() => {
    if (!holder.current || width === 0) return;
    const palette = scheme === "dark" ? DARK : LIGHT;
    const grid = { stroke: palette.line, width: 0.5 };
    const axis: uPlot.Axis = { stroke: palette.text, grid, ticks: grid, font: "10px sans-serif" };
    // Written past React: the pointer moves faster than it is worth rendering for.
    const read = (plot: uPlot) => {
      const { x, y } = latest.current;
      const at = plot.cursor.idx ?? x.length - 1;
      if (readout.current) readout.current.textContent = x.length > 0 ? `${show(y[at] ?? null)} at ${compact(x[at])} ${xLabel}` : "";
    };
    const distr: uPlot.Scale.Distr = logarithmic ? LOGARITHMIC : LINEAR;
    const made = new uPlot(
      {
        width,
        height,
        scales: { x: { time: false }, y: logarithmic ? { distr } : { distr, range: fromZero } },
        cursor: { drag: { x: false, y: false } },
        legend: { show: false },
        hooks: { setCursor: [read], setData: [read], ready: [read] },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map((tick) => compact(tick)), size: 26 },
          // uPlot leaves out ticks of a logarithmic axis that would collide by passing null.
          { ...axis, values: (_, ticks: (number | null)[]) => ticks.map((tick) => (tick === null ? "" : show(tick))), size: 58 },
        ],
        // A run so short that it has one point would otherwise show nothing.
        series: [{}, { stroke: palette.less, width: 1.75, points: { show: (plot) => plot.data[0].length === 1 } }],
      },
      [latest.current.x as number[], latest.current.y as (number | null)[]],
      holder.current,
    );
    chart.current = made;
    return () => {
      chart.current = null;
      made.destroy();
    };
  }, [width, height, scheme, logarithmic, xLabel, show]);

  const last = series.y.at(-1);
  return (
    <figure className={styles.figure} ref={box}>
      <figcaption className={styles.caption}>
        <span className={styles.title}>{title}</span>
        <span className={styles.readout} ref={readout} />
      </figcaption>
      <div
        ref={holder}
        role="img"
        aria-label={`${title} over ${xLabel}: ${series.x.length} points, newest ${show(last ?? null)}${logarithmic ? ", logarithmic axis" : ""}`}
      />
    </figure>
  );
}
