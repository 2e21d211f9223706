/** Live updates of jobs: one socket for the whole application, feeding the query cache. */

import type { QueryClient, QueryKey } from "@tanstack/react-query";
import type { Job } from "@/api/types";
import { addEvents, JobCache, NO_EVENTS, withJob, type EventLog } from "./jobCache";
import type { JobsAnswer, JobsRequest } from "./messages";
import { ReconnectingSocket, socketUrl, type Connection, type SocketOptions } from "./socket";
import { FrameStore } from "./store";

const FINAL = new Set<Job["state"]>(["succeeded", "failed", "cancelled"]);

/** What a finished job may have changed. */
const RESULTS = ["models", "corpora", "recordings", "saes", "features", "patches", "adapters", "exports", "lineage", "artifacts", "notifications"];

interface Watched {
  watchers: number;
  /** The next events answer "everything after", so holes in them are no losses. */
  catchingUp: boolean;
}

type LogStore = FrameStore<{ log: EventLog }>;

export class JobsFeed {
  readonly status = new FrameStore<{ connection: Connection }>({ connection: "connecting" });
  private readonly jobs = new JobCache();
  private readonly projects = new Map<string, number>();
  private readonly watched = new Map<string, Watched>();
  /** Histories stay after nobody watches them: the next watcher goes on from where they end. */
  private readonly logs = new Map<string, LogStore>();
  private socket: ReconnectingSocket<JobsAnswer, JobsRequest> | null = null;

  constructor(private readonly queries: QueryClient, private readonly options: SocketOptions = {}) {
    queries.getQueryCache().subscribe((event) => {
      // What was asked for before a change may be answered after it.
      if (event.type !== "updated" || event.action.type !== "success" || event.action.manual) return;
      const key = event.query.queryKey as QueryKey;
      if (key[0] === "jobs") this.reconcile(key);
    });
  }

  /** Follow a project's jobs until the returned function is called. */
  follow(project: string): () => void {
    const count = this.projects.get(project) ?? 0;
    this.projects.set(project, count + 1);
    if (count === 0) this.send({ type: "subscribe", project });
    return () => {
      const left = (this.projects.get(project) ?? 1) - 1;
      if (left > 0) {
        this.projects.set(project, left);
        return;
      }
      this.projects.delete(project);
      this.jobs.forget(project);
      this.send({ type: "unsubscribe", project });
      this.closeIfIdle();
    };
  }

  /** A job's history as far as it is known; it grows while somebody watches. */
  logOf(job: string): LogStore {
    const log = this.logs.get(job) ?? new FrameStore({ log: NO_EVENTS });
    this.logs.set(job, log);
    return log;
  }

  /** Follow a job's history until the returned function is called. */
  watch(job: string): () => void {
    const entry = this.watched.get(job) ?? { watchers: 0, catchingUp: true };
    this.watched.set(job, entry);
    entry.watchers += 1;
    if (entry.watchers === 1) this.catchUp(job, entry);
    return () => {
      entry.watchers -= 1;
      if (entry.watchers > 0) return;
      this.watched.delete(job);
      this.send({ type: "unwatch", job });
      this.closeIfIdle();
    };
  }

  private send(message: JobsRequest): void {
    this.socket ??= new ReconnectingSocket<JobsAnswer, JobsRequest>(
      socketUrl("/ws/jobs/"),
      {
        onOpen: () => this.opened(),
        onMessage: (answer) => this.receive(answer),
        onConnection: (connection) => this.status.set({ connection }),
      },
      () => ({ type: "ping" }),
      this.options,
    );
    // Not open yet: `opened` says it all.
    this.socket.send(message);
  }

  private opened(): void {
    for (const project of this.projects.keys()) this.send({ type: "subscribe", project });
    for (const [job, entry] of this.watched) this.catchUp(job, entry);
  }

  private catchUp(job: string, entry: Watched): void {
    entry.catchingUp = true;
    this.send({ type: "watch", job, after: this.logOf(job).value.log.last });
  }

  private closeIfIdle(): void {
    if (this.projects.size > 0 || this.watched.size > 0) return;
    this.socket?.close();
    this.socket = null;
    this.status.set({ connection: "connecting" });
  }

  private receive(answer: JobsAnswer): void {
    if (answer.type === "snapshot") {
      this.jobs.snapshot(answer.jobs);
      for (const job of answer.jobs) this.show(this.jobs.get(job.id) ?? job);
    } else if (answer.type === "job") {
      this.changed(answer.job, answer.transient);
    } else if (answer.type === "events") {
      const entry = this.watched.get(answer.job);
      if (!entry) return;
      const store = this.logOf(answer.job);
      const { log, gap } = addEvents(store.value.log, answer.events, entry.catchingUp);
      if (gap) {
        this.catchUp(answer.job, entry);
        return;
      }
      entry.catchingUp = false;
      store.set({ log });
    }
  }

  private changed(job: Job, transient: boolean): void {
    const before = this.jobs.get(job.id);
    const outcome = this.jobs.change(job, transient);
    if (outcome === "old") return;
    if (outcome === "gap") this.send({ type: "subscribe", project: job.project });
    this.show(job);
    if (FINAL.has(job.state) && before?.state !== job.state) {
      for (const key of RESULTS) void this.queries.invalidateQueries({ queryKey: [key] });
      // What can be done with a pipeline depends on all of its steps.
      if (job.pipeline) void this.queries.invalidateQueries({ queryKey: ["jobs", "pipeline", job.pipeline] });
    } else if (outcome === "new") {
      void this.queries.invalidateQueries({ queryKey: ["lineage", job.project] });
    }
  }

  /** Replace what an answer says by what is known to be newer. */
  private reconcile(key: QueryKey): void {
    const newest = (job: Job) => {
      const mine = this.jobs.get(job.id);
      return mine && mine.seq > job.seq ? mine : job;
    };
    const shown = this.queries.getQueryData<Job[] | { job: Job } | { jobs: Job[] }>(key);
    if (Array.isArray(shown)) {
      if (shown.some((job) => newest(job) !== job)) this.queries.setQueryData(key, shown.map(newest));
    } else if (shown && "jobs" in shown) {
      if (shown.jobs.some((job) => newest(job) !== job)) this.queries.setQueryData(key, { ...shown, jobs: shown.jobs.map(newest) });
    } else if (shown && "job" in shown && newest(shown.job) !== shown.job) {
      this.queries.setQueryData(key, { ...shown, job: newest(shown.job) });
    }
  }

  /** Put the job into every list and page that shows it. */
  private show(job: Job): void {
    for (const [key, jobs] of this.queries.getQueriesData<Job[]>({ queryKey: ["jobs"] })) {
      const filters = key[1];
      if (!Array.isArray(jobs) || typeof filters !== "object" || filters === null) continue;
      const { project, subject } = filters as { project?: string; subject?: string };
      const belongs = (!project || project === job.project) && (!subject || subject === job.subject_id);
      if (belongs) this.queries.setQueryData<Job[]>(key, (old) => (old ? withJob(old, job) : old));
    }
    this.queries.setQueryData<{ job: Job }>(["jobs", job.id], (old) => (old ? { ...old, job } : old));
    if (!job.pipeline) return;
    this.queries.setQueryData<{ jobs: Job[] }>(["jobs", "pipeline", job.pipeline], (old) =>
      old ? { ...old, jobs: old.jobs.map((step) => (step.id === job.id ? job : step)) } : old,
    );
  }
}
