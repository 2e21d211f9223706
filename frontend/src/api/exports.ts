/** Patches out: verdicts, exports, certificates. */

import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import type { PatchExport, Verdict } from "./types";

export type Target = PatchExport["target"];

/** What every target can hold of a patch as it is now. */
export const targetsQuery = (patch: string, version: number) =>
  queryOptions({
    queryKey: ["patches", patch, "targets", version],
    queryFn: () => body(api.GET("/api/v1/patches/{id}/targets", { params: { path: { id: patch } } })),
  });

export const exportsQuery = (patch: string) =>
  queryOptions({
    queryKey: ["exports", { patch }],
    queryFn: async () => (await body(api.GET("/api/v1/exports", { params: { query: { patch } } }))).results,
  });

export const startExport = (patch: string, target: Verdict["target"], params: Record<string, unknown>) =>
  body(api.POST("/api/v1/patches/{id}/export", {
    params: { path: { id: patch } },
    body: { target, params },
  }));

/** Measure an export again, on prompts where the patch is meant to act, too. */
export const certifyExport = (id: string, triggers: readonly string[]) =>
  body(api.POST("/api/v1/exports/{id}/certify", {
    params: { path: { id } },
    body: { params: { triggers } },
  }));

export const overrideExport = (id: string, reason: string) =>
  body(api.POST("/api/v1/exports/{id}/override", { params: { path: { id } }, body: { reason } }));

export const deleteExport = (id: string) => body(api.DELETE("/api/v1/exports/{id}", { params: { path: { id } } }));

export const exportFileUrl = (id: string, path: string) =>
  `/api/v1/exports/${id}/files/${path.split("/").map(encodeURIComponent).join("/")}`;
export const exportZipUrl = (id: string) => `/api/v1/exports/${id}/zip`;
export const certificateUrl = (id: string) => `/api/v1/exports/${id}/certificate`;
export const certificatePageUrl = (id: string) => `/api/v1/exports/${id}/certificate/report`;
