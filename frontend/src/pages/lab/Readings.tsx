import { useDebouncedValue } from "@mantine/hooks";
import { spokenChanges } from "@/charts/ProbabilityBars";
import type { LiveState } from "@/live/liveSession";
import type { Result } from "@/live/messages";
import { receiptSentence } from "@/patches/words";
import { pathMeaning, pathName } from "@/science/running";
import { fixed, milliseconds, number } from "@/science/format";
import styles from "./Lab.module.css";

/** The value below which `share` of the samples lie. */
export function percentile(samples: readonly number[], share: number): number | null {
  if (samples.length === 0) return null;
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? null;
}

/** Entropy, KL, time, staleness and receipt of the newest answer. */
export function Readings({ live, stale }: { live: LiveState; stale: boolean }) {
  const { result, roundTrip, roundTrips } = live;
  const [settled] = useDebouncedValue(result, 700);
  return (
    <div>
      <dl className={styles.readings}>
        <div title="uncertainty of the next token, in nats">
          <dt>entropy</dt>
          <dd>{result ? `${fixed(result.entropy_base, 2)} → ${fixed(result.entropy_patched, 2)}` : fixed(live.opened?.entropy, 2)}</dd>
        </div>
        <div title="KL(base ‖ patched) over the whole vocabulary, in nats">
          <dt>KL</dt>
          <dd data-testid="kl">{result ? number(result.kl) : "–"}</dd>
        </div>
        <div title={roundTrips.length > 1 ? `of the last ${roundTrips.length}: half within ${milliseconds(percentile(roundTrips, 0.5))}, 95 % within ${milliseconds(percentile(roundTrips, 0.95))}` : "from sending an edit to its answer"}>
          <dt>round-trip</dt>
          <dd data-testid="round-trip" data-ms={roundTrip ?? ""}>{milliseconds(roundTrip)}</dd>
        </div>
        <div title="time in the server, and of that inside the model">
          <dt>server</dt>
          <dd>{result ? `${milliseconds(result.server_ms)}, model ${milliseconds(result.timings.compute)}` : "–"}</dd>
        </div>
        <div>
          <dt className="visually-hidden">state</dt>
          <dd data-testid="stale" data-stale={stale} style={{ color: stale ? "var(--data-more)" : undefined }}>{stale ? "⟳ older than the newest change" : result ? "✓ up to date" : ""}</dd>
        </div>
      </dl>
      <p data-testid="receipt" style={{ margin: "0.35rem 0 0", fontSize: "0.8125rem" }}>
        {result ? receiptSentence(result.receipt) : " "}
        {result && <> <AnsweredBy path={result.receipt.path} reason={live.opened?.path_reason ?? ""} /></>}
      </p>
      <Spoken result={settled} />
    </div>
  );
}

/** Which way of running the model gave the answer; why it is no faster one, on hover. */
function AnsweredBy({ path, reason }: { path: string; reason: string }) {
  return <span data-testid="path" title={pathMeaning(path, reason)} style={{ color: "var(--mantine-color-dimmed)" }}>By {pathName(path)}.</span>;
}

/** The changes, said once the answers have settled. */
function Spoken({ result }: { result: Result | null }) {
  return <p className="visually-hidden" aria-live="polite" data-testid="spoken">{result ? spokenChanges(result.tokens) : ""}</p>;
}
