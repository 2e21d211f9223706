/** SAEs, their evaluations, and files. */

import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import type { components } from "./schema";

type Schemas = components["schemas"];
type Params = Record<string, unknown>;

export const saesQuery = (project: string) =>
  queryOptions({
    queryKey: ["saes", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/saes", { params: { query: { project } } }))).results,
  });

export const saeQuery = (id: string) =>
  queryOptions({
    queryKey: ["saes", id],
    queryFn: () => body(api.GET("/api/v1/saes/{id}", { params: { path: { id } } })),
  });

export const trainSae = (data: Schemas["SaeCreateRequest"]) =>
  body(api.POST("/api/v1/saes", { body: data }));

const about = (id: string, params: Params) => ({
  params: { path: { id } },
  body: { params },
});

/** `recording` is for imported SAEs, which have none of their own yet. */
export function evaluateSae(id: string, params: Params = {}, recording?: string) {
  const request = about(id, params);
  return body(api.POST("/api/v1/saes/{id}/evaluate", { ...request, body: { ...request.body, recording } }));
}
export const exportSae = (id: string, params: Params) => body(api.POST("/api/v1/saes/{id}/export", about(id, params)));
export const importSae = (data: Schemas["SaeImportRequest"]) =>
  body(api.POST("/api/v1/saes/import", { body: data }));
export const analyseSae = (id: string, params: Params = {}) => body(api.POST("/api/v1/saes/{id}/analyse", about(id, params)));
export const deleteSae = (id: string) => body(api.DELETE("/api/v1/saes/{id}", { params: { path: { id } } }));

export const artifactQuery = (id: string) =>
  queryOptions({
    queryKey: ["artifacts", id],
    queryFn: () => body(api.GET("/api/v1/artifacts/{id}", { params: { path: { id } } })),
    staleTime: Infinity,
  });

/** Address of a file for a download link. */
export const fileUrl = (artifact: string, path: string) =>
  `/api/v1/artifacts/${artifact}/files/${path.split("/").map(encodeURIComponent).join("/")}`;

/** Address of all files of an artifact in one archive. */
export const archiveUrl = (artifact: string) => `/api/v1/artifacts/${artifact}/zip`;

export const reportUrl = (evaluation: string) => `/api/v1/evaluations/${evaluation}/report`;
