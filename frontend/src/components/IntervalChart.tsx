import { number } from "@/science/format";
import type { Interval } from "@/science/comparison";
import styles from "./IntervalChart.module.css";

const ROW = 26;
const LEFT = 170;
const WIDTH = 640;
const RIGHT = 24;

/** A dot with its interval per row, and the goal as a dashed line. */
export function IntervalChart({ rows, goal, title }: { rows: readonly Interval[]; goal: number; title: string }) {
  const ends = [goal, ...rows.flatMap((row) => [row.low, row.high])];
  const low = Math.min(...ends);
  const span = Math.max(...ends) - low || 1;
  const x = (value: number) => LEFT + ((value - low) / span) * (WIDTH - LEFT - RIGHT);
  const height = ROW * rows.length;
  const words = rows.map((row) => `${row.name} ${number(row.value)}, ${number(row.low)} to ${number(row.high)}`).join("; ");
  return (
    <figure className={styles.figure}>
      <figcaption>{title}</figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${height + 24}`} role="img" aria-label={`${title}. ${words}. Goal ${number(goal)}.`} className={styles.svg}>
        <line className={styles.goal} x1={x(goal)} x2={x(goal)} y1={0} y2={height} />
        <text className={styles.text} x={x(goal)} y={height + 16} textAnchor="middle">goal {number(goal)}</text>
        {rows.map((row, place) => {
          const y = ROW * (place + 0.5);
          return (
            <g key={row.name}>
              <title>{`${row.name}: ${number(row.value)}, ${number(row.low)} to ${number(row.high)}`}</title>
              <text className={styles.text} x={LEFT - 12} y={y + 4} textAnchor="end">{row.name.slice(0, 24)}</text>
              <line className={styles.interval} x1={x(row.low)} x2={x(row.high)} y1={y} y2={y} />
              <circle className={styles.dot} cx={x(row.value)} cy={y} r={4} />
            </g>
          );
        })}
      </svg>
    </figure>
  );
}
