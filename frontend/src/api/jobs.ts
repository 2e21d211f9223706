import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import type { components } from "./schema";
import type { Job, JobEvent } from "./types";

type Schemas = components["schemas"];

const ACTIVE = new Set<Job["state"]>(["waiting", "queued", "claimed", "running", "cancelling"]);

export function isActive(job: Job): boolean {
  return ACTIVE.has(job.state);
}

interface JobFilters {
  project?: string;
  subject?: string;
}

export const jobsQuery = (filters: JobFilters = {}) =>
  queryOptions({
    queryKey: ["jobs", filters],
    queryFn: async () => (await body(api.GET("/api/v1/jobs", { params: { query: filters } }))).results,
  });

export const jobQuery = (id: string) =>
  queryOptions({
    queryKey: ["jobs", id],
    queryFn: () => body(api.GET("/api/v1/jobs/{id}", { params: { path: { id } } })),
  });

/** The whole history of a job, in as many requests as it takes. */
export async function jobEventsAfter(id: string, after: number, kinds?: JobEvent["kind"][]): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  let from = after;
  for (;;) {
    const answer = await body(api.GET("/api/v1/jobs/{id}/events", { params: { path: { id }, query: { after: from, kind: kinds } } }));
    events.push(...answer.events);
    const last = answer.events.at(-1);
    if (!last || last.seq >= answer.last) return events;
    from = last.seq;
  }
}

export const jobKindsQuery = queryOptions({
  queryKey: ["job-kinds"],
  queryFn: () => body(api.GET("/api/v1/job-kinds")),
  staleTime: Infinity,
});

export const cancelJob = (id: string) => body(api.POST("/api/v1/jobs/{id}/cancel", { params: { path: { id } } }));
/** Do the same once more; `params` holds only what is different. */
export const cloneJob = (id: string, name: string, params: Record<string, unknown>) =>
  body(api.POST("/api/v1/jobs/{id}/clone", { params: { path: { id } }, body: { name, params } }));

/** Record, train, evaluate and analyse in one go. */
export const startPipeline = (data: Schemas["PipelineCreateRequest"]) =>
  body(api.POST("/api/v1/pipelines", { body: data }));

export const pipelineQuery = (id: string) =>
  queryOptions({
    queryKey: ["jobs", "pipeline", id],
    queryFn: () => body(api.GET("/api/v1/pipelines/{id}", { params: { path: { id } } })),
  });

export const cancelPipeline = (id: string) => body(api.POST("/api/v1/pipelines/{id}/cancel", { params: { path: { id } } }));
export const retryPipeline = (id: string) => body(api.POST("/api/v1/pipelines/{id}/retry", { params: { path: { id } } }));

export const retryJob = (id: string) => body(api.POST("/api/v1/jobs/{id}/retry", { params: { path: { id } } }));
