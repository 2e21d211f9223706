import { Switch, Text } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import type { JobEvent } from "@/api/types";
import styles from "./JobLog.module.css";

const SIGNS: Record<JobEvent["level"], string> = { info: "", warning: "! ", error: "✕ " };

function timeOf(event: JobEvent): string {
  return new Date(event.at).toLocaleTimeString(undefined, { hour12: false });
}

/** What a line says; states and checkpoints often come without a sentence. */
function lineOf(event: JobEvent): string {
  if (event.message !== "") return event.message;
  const { state } = event.data as { state?: string };
  return event.kind === "state" && state ? `${state.charAt(0).toUpperCase()}${state.slice(1)}.` : event.kind;
}

/** States, checkpoints and log lines, newest at the bottom, scrolled along while they arrive. */
export function JobLog({ events }: { events: readonly JobEvent[] }) {
  const [follow, setFollow] = useState(true);
  const box = useRef<HTMLDivElement>(null);
  const lines = events.filter((event) => event.kind !== "metrics");
  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [follow, lines.length]);
  return (
    <div>
      <div className={styles.head}>
        <Text fw={600} size="sm">Log</Text>
        <Switch size="xs" label="follow" checked={follow} onChange={(event) => setFollow(event.currentTarget.checked)} />
      </div>
      <div ref={box} className={styles.log} role="log" aria-label="Log of the job" tabIndex={0} data-testid="job-log">
        {lines.length === 0 && <Text size="xs" c="dimmed">Nothing yet.</Text>}
        {lines.map((event) => (
          <div key={event.seq} className={styles.line} data-level={event.level} data-kind={event.kind}>
            <span className={styles.time}>{timeOf(event)}</span>
            <span>{SIGNS[event.level]}{lineOf(event)}</span>
          </div>
        ))}
      </div>
    </div>
  );
}
