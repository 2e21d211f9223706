/** The newest known state of jobs, from a stream of messages that may lose some. */

import type { Job, JobEvent } from "@/api/types";

/** `gap`: something was missed, so a fresh snapshot is needed; the change itself is taken in nevertheless. */
export type Outcome = "new" | "applied" | "old" | "gap";

export class JobCache {
  private readonly known = new Map<string, Job>();

  /** Take in a full answer about some jobs. */
  snapshot(jobs: readonly Job[]): void {
    for (const job of jobs) {
      const mine = this.known.get(job.id);
      // A change may arrive before an older snapshot.
      if (!mine || mine.seq <= job.seq) this.known.set(job.id, job);
    }
  }

  /** A job as it is now. Durable changes count up by one; transient ones repeat the number. */
  change(job: Job, transient: boolean): Outcome {
    const mine = this.known.get(job.id);
    if (mine && (job.seq < mine.seq || (job.seq === mine.seq && !transient))) return "old";
    this.known.set(job.id, job);
    if (!mine) return "new";
    const expected = transient ? mine.seq : mine.seq + 1;
    return job.seq === expected ? "applied" : "gap";
  }

  get(id: string): Job | undefined {
    return this.known.get(id);
  }

  forget(project: string): void {
    for (const job of this.known.values()) if (job.project === project) this.known.delete(job.id);
  }
}

/** A job's history, in order. */
export interface EventLog {
  events: readonly JobEvent[];
  last: number;
}

export const NO_EVENTS: EventLog = { events: [], last: 0 };

/**
 * Add what arrived. `complete` marks an answer to "everything after `last`": points of curves are thinned
 * on the server, so its numbers may have holes, while a hole in what is pushed means that a message was lost.
 */
export function addEvents(log: EventLog, arrived: readonly JobEvent[], complete: boolean): { log: EventLog; gap: boolean } {
  const fresh = arrived.filter((event) => event.seq > log.last);
  const first = fresh[0];
  if (first === undefined) return { log, gap: false };
  if (!complete && first.seq !== log.last + 1) return { log, gap: true };
  return { log: { events: [...log.events, ...fresh], last: fresh.at(-1)!.seq }, gap: false };
}

/** Jobs with one of them replaced, or put in its place by age when it is new. */
export function withJob(jobs: readonly Job[], job: Job): Job[] {
  const place = jobs.findIndex((one) => one.id === job.id);
  if (place !== -1) return jobs.map((one) => (one.id === job.id ? job : one));
  // Ids sort by creation time; the list shows the newest first.
  const before = jobs.findIndex((one) => one.id < job.id);
  return before === -1 ? [...jobs, job] : [...jobs.slice(0, before), job, ...jobs.slice(before)];
}
