/** Models, corpora and recordings. */

import { queryOptions } from "@tanstack/react-query";
import { api, body, csrfToken, idempotencyKey } from "./client";
import { errorOf, unreachable } from "./errors";
import type { components } from "./schema";
import type { Corpus, Model } from "./types";

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
  body(api.POST("/api/v1/models", { body: data, headers: { "Idempotency-Key": idempotencyKey() } }));

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

export const addCorpus = (data: Omit<Schemas["CorpusCreateRequest"], "file">) =>
  body(api.POST("/api/v1/corpora", { body: data }));

export const deleteCorpus = (id: string) => body(api.DELETE("/api/v1/corpora/{id}", { params: { path: { id } } }));

interface Upload {
  project: string;
  name: string;
  textField: string;
  file: File;
}

/** Upload a corpus; XMLHttpRequest because fetch does not tell how far an upload is. */
export function uploadCorpus({ project, name, textField, file }: Upload, onProgress: (share: number) => void): Promise<Corpus> {
  const form = new FormData();
  for (const [key, value] of Object.entries({ project, name, kind: "upload", text_field: textField })) form.set(key, value);
  form.set("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/v1/corpora");
    request.setRequestHeader("X-CSRFToken", csrfToken());
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    request.onload = () => {
      if (request.status < 300) resolve(request.response as Corpus);
      else reject(errorOf(request.status, request.response));
    };
    request.onerror = () => reject(unreachable());
    request.send(form);
  });
}

export const recordingsQuery = (project: string) =>
  queryOptions({
    queryKey: ["recordings", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/recordings", { params: { query: { project } } }))).results,
  });

export const startRecording = (data: Schemas["RecordingCreateRequest"]) =>
  body(api.POST("/api/v1/recordings", { body: data, headers: { "Idempotency-Key": idempotencyKey() } }));

export const deleteRecording = (id: string) => body(api.DELETE("/api/v1/recordings/{id}", { params: { path: { id } } }));
