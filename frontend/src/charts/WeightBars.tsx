import { tokenLabel } from "@/science/tokens";
import styles from "./WeightBars.module.css";

export interface WeightRow {
  token: number;
  text: string;
  /** Length of the bar; its sign says which way. */
  weight: number;
  /** The number as text. */
  shown: string;
}

/** Tokens with a bar each. Negative bars are blue and ruled, so that colour is not the only sign. */
export function WeightBars({ rows, label, largest }: { rows: readonly WeightRow[]; label: string; largest?: number }) {
  const longest = largest ?? Math.max(0, ...rows.map((row) => Math.abs(row.weight)));
  return (
    <ul className={styles.list} aria-label={label}>
      {rows.map((row) => (
        <li key={row.token} className={styles.row}>
          <span className={styles.token} title={`token ${row.token}`}>{tokenLabel(row.text)}</span>
          <span className={styles.track} aria-hidden="true">
            <span
              className={`${styles.bar} ${row.weight < 0 ? styles.less : styles.more}`}
              style={{ width: longest > 0 ? `${(Math.abs(row.weight) / longest) * 100}%` : 0 }}
            />
          </span>
          <span className={styles.value}>{row.shown}</span>
        </li>
      ))}
    </ul>
  );
}
