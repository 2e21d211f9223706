import { Link } from "@tanstack/react-router";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useRef } from "react";
import type { FeatureOrdering } from "@/api/features";
import type { Feature } from "@/api/types";
import { integer, number, percent } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./Features.module.css";

interface FeatureTableProps {
  project: string;
  rows: readonly Feature[];
  total: number;
  ordering: FeatureOrdering;
  onOrdering: (ordering: FeatureOrdering) => void;
  loading: boolean;
  /** The end of what is loaded came into sight. */
  onEnd: () => void;
}

const ROW = 30;

/** The share of six decades, from one in a million to all, that a density spans. */
export function densityShare(density: number): number {
  return density > 0 ? Math.max(0.02, Math.min(1, 1 + Math.log10(density) / 6)) : 0;
}

/** Tens of thousands of rows, of which only the visible ones exist. */
export function FeatureTable({ project, rows, total, ordering, onOrdering, loading, onEnd }: FeatureTableProps) {
  const box = useRef<HTMLDivElement>(null);
  // eslint-disable-next-line react-hooks/incompatible-library -- the virtualizer re-renders this component itself
  const virtual = useVirtualizer({ count: rows.length, getScrollElement: () => box.current, estimateSize: () => ROW, overscan: 12 });
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (rows.length > 0 && last >= rows.length - 30) onEnd();
  }, [last, rows.length, onEnd]);
  useEffect(() => {
    box.current?.scrollTo({ top: 0 });
  }, [ordering]);

  const sorter = (name: "index" | "density" | "max_activation" | "p999", label: string, className?: string) => {
    const active = ordering.replace("-", "") === name;
    const descending = ordering.startsWith("-");
    const next = active ? (descending ? name : `-${name}` as const) : name === "index" ? name : (`-${name}` as const);
    return (
      <span role="columnheader" aria-sort={active ? (descending ? "descending" : "ascending") : "none"} className={className}>
        <button type="button" onClick={() => onOrdering(next)}>{label} {active ? (descending ? "↓" : "↑") : ""}</button>
      </span>
    );
  };

  return (
    <div ref={box} className={styles.box} role="table" aria-label="Features" aria-rowcount={total + 1} aria-busy={loading}>
      <div className={styles.head} role="row">
        <span role="columnheader" aria-label="Starred" />
        {sorter("index", "Feature")}
        <span role="columnheader">Label, tokens it fires on</span>
        <span role="columnheader" className={styles.wide}>Promotes</span>
        {sorter("density", "Density")}
        {sorter("max_activation", "Max", `${styles.number} ${styles.wide}`)}
        {sorter("p999", "p99.9", `${styles.number} ${styles.wide}`)}
      </div>
      <div style={{ height: virtual.getTotalSize(), position: "relative" }} role="rowgroup">
        {items.map((item) => {
          const feature = rows[item.index];
          return feature && <Row key={feature.id} project={project} feature={feature} top={item.start} place={item.index} />;
        })}
      </div>
      {loading && <div style={{ padding: "0.5rem" }}>Loading…</div>}
    </div>
  );
}

function Tokens({ texts, className }: { texts: readonly string[]; className?: string }) {
  return (
    <span className={`${styles.tokens} ${styles.clip} ${className ?? ""}`}>
      {texts.slice(0, 8).map((text, place) => <span key={place}>{tokenLabel(text)}</span>)}
    </span>
  );
}

function Row({ project, feature, top, place }: { project: string; feature: Feature; top: number; place: number }) {
  return (
    <Link
      to="/projects/$project/features/$feature"
      params={{ project, feature: feature.id }}
      role="row"
      aria-rowindex={place + 2}
      className={`${styles.row} ${feature.dead ? styles.dead : ""}`}
      style={{ height: ROW, transform: `translateY(${top}px)` }}
      data-testid="feature-row"
      data-index={feature.index}
    >
      <span role="cell" aria-label={feature.starred ? "starred" : "not starred"}>{feature.starred ? "★" : ""}</span>
      <span role="cell" className={styles.number}>{feature.index}</span>
      <span role="cell" className={styles.clip}>
        {feature.label && <span className={styles.label}>{feature.label}{"  "}</span>}
        {feature.dead ? "never fired in the analysis" : <Tokens texts={feature.top_tokens} />}
      </span>
      <span role="cell" className={`${styles.clip} ${styles.wide}`}><Tokens texts={feature.promoted} /></span>
      <span role="cell" className={styles.density} title={`fires on ${integer(feature.firings)} tokens`}>
        <span className={styles.densityBar} style={{ width: `${densityShare(feature.density) * 100}%` }} />
        <span className={styles.number}>{percent(feature.density)}</span>
      </span>
      <span role="cell" className={`${styles.number} ${styles.wide}`}>{number(feature.max_activation)}</span>
      <span role="cell" className={`${styles.number} ${styles.wide}`}>{number(feature.p999)}</span>
    </Link>
  );
}
