/** Models, corpora and recordings. */

import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import type { components } from "./schema";
import type { Model } from "./types";

type Schemas = components["schemas"];

/** While something is being started or stopped, its state is asked for until it settles. */
export function modelSettling(model: Model): boolean {
  const resident = model.resident?.state;
  if (model.state === "pending" || resident === "starting") return true;
  if (model.wanted_loaded) return resident !== "ready" && resident !== "failed";
  return resident === "ready" || resident === "lost";
}

export const modelsQuery = (project: string) =>
  queryOptions({
    queryKey: ["models", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/models", { params: { query: { project } } }))).results,
    refetchInterval: (query) => (query.state.data?.some(modelSettling) ? 1500 : false),
  });

export const modelQuery = (id: string) =>
  queryOptions({
    queryKey: ["models", id],
    queryFn: () => body(api.GET("/api/v1/models/{id}", { params: { path: { id } } })),
    refetchInterval: (query) => (query.state.data && modelSettling(query.state.data) ? 1500 : false),
  });

export const addModel = (data: Schemas["ModelCreateRequest"]) =>
  body(api.POST("/api/v1/models", { body: data }));

export const loadModel = (id: string) => body(api.POST("/api/v1/models/{id}/load", { params: { path: { id } } }));
export const unloadModel = (id: string) => body(api.POST("/api/v1/models/{id}/unload", { params: { path: { id } } }));
export const deleteModel = (id: string) => body(api.DELETE("/api/v1/models/{id}", { params: { path: { id } } }));

export const corporaQuery = (project: string) =>
  queryOptions({
    queryKey: ["corpora", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/corpora", { params: { query: { project } } }))).results,
  });

export const builtinCorporaQuery = queryOptions({
  queryKey: ["corpora", "builtin"],
  queryFn: () => body(api.GET("/api/v1/corpora/builtin")),
});

export const addCorpus = (data: Schemas["CorpusCreateRequest"]) =>
  body(api.POST("/api/v1/corpora", { body: data }));

/** Bring an uploaded text in; a job reads all of it before it can be recorded on. */
export const importCorpus = (data: Schemas["CorpusImportRequest"]) =>
  body(api.POST("/api/v1/corpora/import", { body: data }));

export const deleteCorpus = (id: string) => body(api.DELETE("/api/v1/corpora/{id}", { params: { path: { id } } }));

export const recordingsQuery = (project: string) =>
  queryOptions({
    queryKey: ["recordings", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/recordings", { params: { query: { project } } }))).results,
  });

export const startRecording = (data: Schemas["RecordingCreateRequest"]) =>
  body(api.POST("/api/v1/recordings", { body: data }));

export const deleteRecording = (id: string) => body(api.DELETE("/api/v1/recordings/{id}", { params: { path: { id } } }));

/** Bring a recording of a model in, from its files or its archive. */
export const importRecording = (data: Schemas["RecordingImportRequest"]) =>
  body(api.POST("/api/v1/recordings/import", { body: data }));

/** Pack a recording into one archive: the artifact of the job. */
export const exportRecording = (id: string) =>
  body(api.POST("/api/v1/recordings/{id}/export", { params: { path: { id } } }));
