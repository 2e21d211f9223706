import type { ReactNode } from "react";
import { percent, points } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./ProbabilityBars.module.css";

export interface TokenShift {
  token: number;
  text: string;
  base: number;
  patched: number;
}

/** The end of the axis: the next round number above the largest probability. */
export function axisEnd(rows: readonly TokenShift[]): number {
  const largest = Math.max(0, ...rows.flatMap((row) => [row.base, row.patched]));
  return [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75].find((end) => largest <= end) ?? 1;
}

/** The changes worth saying aloud: the largest few above half a point. */
export function spokenChanges(rows: readonly TokenShift[], count = 3): string {
  const changed = rows
    .map((row) => ({ ...row, change: row.patched - row.base }))
    .filter((row) => Math.abs(row.change) >= 0.005)
    .sort((a, b) => Math.abs(b.change) - Math.abs(a.change))
    .slice(0, count);
  if (changed.length === 0) return "No next token changes by half a point or more.";
  return changed
    .map((row) => `${row.text.trim() || "space"} ${percent(row.base)} to ${percent(row.patched)}`)
    .join(", ");
}

/** Next-token probabilities on one axis: base hollow above, patched filled below, change in points. */
export function ProbabilityBars({ rows, stale = false, action }: { rows: readonly TokenShift[]; stale?: boolean; action?: (row: TokenShift) => ReactNode }) {
  const end = axisEnd(rows);
  const width = (share: number) => `${Math.min(1, share / end) * 100}%`;
  return (
    <table className={`${styles.table} ${stale ? styles.stale : ""}`} aria-label="Next-token probabilities">
      <thead>
        <tr>
          <th scope="col">token</th>
          <th scope="col" className={styles.bars}>
            <span className={styles.axis}>
              <span className={styles.legend}>
                <span><span className={`${styles.key} ${styles.keyBase}`} />base</span>
                <span><span className={`${styles.key} ${styles.keyPatched}`} />patched</span>
              </span>
              <span title="end of the axis">{percent(end)}</span>
            </span>
          </th>
          <th scope="col" className={styles.number}><span className={`${styles.key} ${styles.keyBase}`} />base</th>
          <th scope="col" className={styles.number}><span className={`${styles.key} ${styles.keyPatched}`} />patched</th>
          <th scope="col" title="difference in percentage points">Δ pt</th>
          {action && <th scope="col"><span className="visually-hidden">explain</span></th>}
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <Row key={row.token} row={row} width={width} action={action?.(row)} />
        ))}
      </tbody>
    </table>
  );
}

function Row({ row, width, action }: { row: TokenShift; width: (share: number) => string; action?: ReactNode }) {
  const change = row.patched - row.base;
  const written = points(change);
  const direction = written === "±0" ? styles.still : change > 0 ? styles.up : styles.down;
  return (
    <tr data-testid="prob-row" data-token={row.text} data-base={row.base} data-patched={row.patched}>
      <td className={styles.token} title={`${tokenLabel(row.text)}, token ${row.token}`}>
        <span>{tokenLabel(row.text)}</span>
      </td>
      <td className={styles.bars} title={`base ${percent(row.base)}, patched ${percent(row.patched)}`}>
        <div className={styles.track} aria-hidden="true">
          <span className={styles.base} style={{ width: width(row.base) }} />
          <span className={styles.patched} style={{ width: width(row.patched) }} />
        </div>
      </td>
      <td className={styles.number}>{percent(row.base)}</td>
      <td className={styles.number}>{percent(row.patched)}</td>
      <td className={direction}>{written}</td>
      {action !== undefined && <td>{action}</td>}
    </tr>
  );
}
