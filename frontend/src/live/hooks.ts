import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useMemo, useSyncExternalStore } from "react";
import type { EventLog } from "./jobCache";
import { JobsFeed } from "./jobsFeed";
import { IDLE, LiveSession, type LiveState } from "./liveSession";

let feed: JobsFeed | null = null;

function useFeed(): JobsFeed {
  const queries = useQueryClient();
  return (feed ??= new JobsFeed(queries));
}

/** Milliseconds between requests while the socket is away. */
export const POLLING = 3_000;

/** Keep the job lists of these projects fresh. Returns whether updates are live; poll while they are not. */
export function useJobUpdates(projects: readonly string[]): boolean {
  const jobs = useFeed();
  const wanted = [...projects].sort().join(" ");
  useEffect(() => {
    const stops = wanted.split(" ").filter(Boolean).map((project) => jobs.follow(project));
    return () => stops.forEach((stop) => stop());
  }, [jobs, wanted]);
  return useSyncExternalStore(jobs.status.subscribe, jobs.status.getSnapshot).connection === "open";
}

/** Whether the jobs socket has been away for long enough to say so. */
export function useLiveUpdatesOff(): boolean {
  const { status } = useFeed();
  const { connection } = useSyncExternalStore(status.subscribe, status.getSnapshot);
  return connection === "lost" || connection === "ended";
}

/** A job's history as it grows. */
export function useJobLog(job: string): EventLog {
  const jobs = useFeed();
  useEffect(() => jobs.watch(job), [jobs, job]);
  const store = jobs.logOf(job);
  return useSyncExternalStore(store.subscribe, store.getSnapshot).log;
}

const nothing = (): (() => void) => () => undefined;
const idle = (): LiveState => IDLE;

/** A live session with a model for as long as the component is there; none without a model. `top`: how many next tokens. */
export function useLiveSession(model: string | undefined, top?: number): [LiveSession | null, LiveState] {
  const session = useMemo(() => (model ? new LiveSession(model, top) : null), [model, top]);
  useEffect(() => session?.start(), [session]);
  const state = useSyncExternalStore(session?.store.subscribe ?? nothing, session?.store.getSnapshot ?? idle);
  return [session, state];
}
