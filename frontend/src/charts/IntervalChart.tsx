import type { Interval } from "@/science/comparison";
import { number } from "@/science/format";
import { Plot } from "./Plot";
import styles from "./Plot.module.css";

const ROW = 26;
const AROUND = 24;

/** A dot with its interval per row, and the goal as a dashed line. */
export function IntervalChart({ rows, goal, title }: { rows: readonly Interval[]; goal: number; title: string }) {
  const ends = [goal, ...rows.flatMap((row) => [row.low, row.high])];
  const margin = (Math.max(...ends) - Math.min(...ends)) * 0.05;
  const words = rows.map((row) => `${row.name} ${number(row.value)}, ${number(row.low)} to ${number(row.high)}`);
  return (
    <Plot
      title={title}
      spoken={`${title}. ${words.join("; ")}. Goal ${number(goal)}.`}
      readout={`dashed: goal ${number(goal)}`}
      height={ROW * rows.length + AROUND}
      left={170}
      x={{ low: Math.min(...ends) - margin, high: Math.max(...ends) + margin, show: (value) => number(value) }}
    >
      {(area) => (
        <>
          <line className={styles.goal} x1={area.x(goal)} x2={area.x(goal)} y1={0} y2={area.bottom} />
          {rows.map((row, place) => {
            const y = area.top + ROW * (place + 0.5);
            return (
              <g key={row.name}>
                <title>{words[place]}</title>
                <text className={styles.text} x={area.left - 12} y={y + 4} textAnchor="end">{row.name.slice(0, 24)}</text>
                <line className={styles.interval} x1={area.x(row.low)} x2={area.x(row.high)} y1={y} y2={y} />
                <circle className={styles.dot} cx={area.x(row.value)} cy={y} r={4} />
              </g>
            );
          })}
        </>
      )}
    </Plot>
  );
}
