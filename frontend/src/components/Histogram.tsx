import { useElementSize } from "@mantine/hooks";
import { useState, type KeyboardEvent, type PointerEvent } from "react";
import { integer, number } from "@/science/format";
import { barHeight, binOf, ticks, type Bin } from "@/science/histogram";
import styles from "./Histogram.module.css";

interface HistogramProps {
  title: string;
  bins: readonly Bin[];
  /** Axis label with unit. */
  axis: string;
  /** What is counted: "firings", "features". */
  counted: string;
  scale?: "linear" | "log";
  height?: number;
  /** A value to mark, such as the activation of the token under the pointer. */
  marked?: number | null;
  /** How an axis value is written. */
  show?: (value: number) => string;
}

const LEFT = 4;
const RIGHT = 8;
const BOTTOM = 18;
const TOP = 6;

/** A histogram with an axis, values on hover or with arrow keys, and a marker for one value. */
export function Histogram({
  title, bins, axis, counted, scale = "linear", height = 110, marked = null, show = (value) => number(value, 3),
}: HistogramProps) {
  const { ref, width } = useElementSize();
  const [cursor, setCursor] = useState<number | null>(null);
  const start = bins[0]?.low ?? 0;
  const end = bins.at(-1)?.high ?? 1;
  const tallest = Math.max(0, ...bins.map((bin) => bin.count));
  const inner = Math.max(1, (width || 300) - LEFT - RIGHT);
  const plot = height - BOTTOM - TOP;
  const x = (value: number) => LEFT + ((value - start) / (end - start || 1)) * inner;
  const markedBin = marked === null ? -1 : binOf(bins, marked);
  const current = cursor ?? (markedBin === -1 ? null : markedBin);
  const bin = current === null ? undefined : bins[current];

  const onKeyDown = (event: KeyboardEvent) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step === 0) return;
    event.preventDefault();
    setCursor((now) => Math.max(0, Math.min(bins.length - 1, (now ?? -step) + step)));
  };
  const onPointerMove = (event: PointerEvent<SVGSVGElement>) => {
    const box = event.currentTarget.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / inner;
    setCursor(Math.max(0, Math.min(bins.length - 1, Math.floor(share * bins.length))));
  };

  return (
    <figure className={styles.figure} ref={ref}>
      <figcaption className={styles.caption}>
        <span className={styles.title}>{title}</span>
        <span className={styles.readout} aria-live="polite">
          {bin
            ? `${show(bin.low)} to ${show(bin.high)}: ${integer(bin.count)} ${counted}`
            : `${integer(bins.reduce((sum, one) => sum + one.count, 0))} ${counted}${scale === "log" ? ", log counts" : ""}`}
        </span>
      </figcaption>
      <svg
        className={styles.svg}
        height={height}
        viewBox={`0 0 ${inner + LEFT + RIGHT} ${height}`}
        preserveAspectRatio="none"
        role="img"
        tabIndex={0}
        aria-label={`${title}: ${counted} by ${axis}, from ${show(start)} to ${show(end)}. Arrow keys read the bins.`}
        onKeyDown={onKeyDown}
        onBlur={() => setCursor(null)}
        onPointerMove={onPointerMove}
        onPointerLeave={() => setCursor(null)}
      >
        {bins.map((one, place) => {
          const size = barHeight(one.count, tallest, scale) * plot;
          return (
            <rect
              key={place}
              className={styles.bar}
              data-current={place === current}
              x={x(one.low) + 0.5}
              width={Math.max(1, x(one.high) - x(one.low) - 1)}
              y={TOP + plot - size}
              height={size}
            />
          );
        })}
        <line className={styles.axis} x1={LEFT} x2={LEFT + inner} y1={TOP + plot + 0.5} y2={TOP + plot + 0.5} />
        {ticks(start, end, Math.max(2, Math.floor(inner / 70))).map((tick) => (
          <text
            key={tick}
            className={styles.tick}
            x={x(tick)}
            y={height - 4}
            textAnchor={x(tick) < 16 ? "start" : x(tick) > inner - 8 ? "end" : "middle"}
          >
            {show(tick)}
          </text>
        ))}
        {marked !== null && marked >= start && marked <= end && (
          <line className={styles.marker} x1={x(marked)} x2={x(marked)} y1={0} y2={TOP + plot} />
        )}
      </svg>
      <div className={styles.caption}>
        <span>{axis}</span>
      </div>
    </figure>
  );
}
