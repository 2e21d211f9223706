import { Button } from "@mantine/core";
import type { ReactNode } from "react";
import { number } from "@/science/format";
import styles from "./Graphs.module.css";

export interface SignedRow {
  key: string;
  label: ReactNode;
  value: number;
  /** A button at the end of the row. */
  action?: { label: string; title: string; run: () => void };
}

/** Contributions with a bar each: to the right and orange what adds, to the left, blue and ruled, what takes away. */
export function SignedBars({ rows, label, testId }: { rows: readonly SignedRow[]; label: string; testId?: string }) {
  const largest = Math.max(0, ...rows.map((row) => Math.abs(row.value)));
  const bar = (row: SignedRow, side: "less" | "more") =>
    (side === "less") === row.value < 0 && largest > 0 && <span className={`${styles.bar} ${styles[side]}`} style={{ width: `${(Math.abs(row.value) / largest) * 100}%` }} />;
  return (
    <ul className={styles.bars} aria-label={label} data-testid={testId}>
      {rows.map((row) => (
        <li key={row.key}>
          <span style={{ overflowWrap: "anywhere" }}>{row.label}</span>
          <span className={styles.track} aria-hidden="true">
            <span className={styles.half}>{bar(row, "less")}</span>
            <span className={styles.half}>{bar(row, "more")}</span>
          </span>
          <span className={styles.number}>{number(row.value)}</span>
          <span>{row.action && <Button size="compact-sm" variant="subtle" title={row.action.title} onClick={row.action.run} data-testid="row-action">{row.action.label}</Button>}</span>
        </li>
      ))}
    </ul>
  );
}
