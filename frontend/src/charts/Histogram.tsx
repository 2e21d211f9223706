import { useState } from "react";
import { integer, number } from "@/science/format";
import { barHeight, binOf, type Bin } from "@/science/histogram";
import { Plot } from "./Plot";
import styles from "./Plot.module.css";

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

/** A histogram that reads out its bins, and marks one value. */
export function Histogram({
  title, bins, axis, counted, scale = "linear", height = 110, marked = null, show = (value) => number(value, 3),
}: HistogramProps) {
  const [cursor, setCursor] = useState<number | null>(null);
  const low = bins[0]?.low ?? 0;
  const high = bins.at(-1)?.high ?? 1;
  const tallest = Math.max(0, ...bins.map((bin) => bin.count));
  const markedBin = marked === null ? -1 : binOf(bins, marked);
  const current = cursor ?? (markedBin === -1 ? null : markedBin);
  const bin = current === null ? undefined : bins[current];
  const all = bins.reduce((sum, one) => sum + one.count, 0);
  return (
    <Plot
      title={title}
      spoken={`${title}: ${counted} by ${axis}, from ${show(low)} to ${show(high)}. Arrow keys read the bins.`}
      readout={
        bin
          ? `${show(bin.low)} to ${show(bin.high)}: ${integer(bin.count)} ${counted}`
          : `${integer(all)} ${counted}${scale === "log" ? ", log counts" : ""}`
      }
      note={axis}
      height={height}
      x={{ low, high, show }}
      cursor={{ values: bins.map((one) => (one.low + one.high) / 2), at: cursor, onMove: setCursor }}
    >
      {(area) => (
        <>
          {bins.map((one, place) => {
            const top = area.y(barHeight(one.count, tallest, scale));
            return (
              <rect
                key={place}
                className={styles.bar}
                data-current={place === current}
                x={area.x(one.low) + 0.5}
                width={Math.max(1, area.x(one.high) - area.x(one.low) - 1)}
                y={top}
                height={area.bottom - top}
              />
            );
          })}
          {marked !== null && marked >= low && marked <= high && (
            <line className={styles.marker} x1={area.x(marked)} x2={area.x(marked)} y1={0} y2={area.bottom} />
          )}
        </>
      )}
    </Plot>
  );
}
