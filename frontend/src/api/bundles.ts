/** Whole projects as one file. */

import { api, body } from "./client";

export const exportProject = (id: string, params: { recordings: boolean }) =>
  body(api.POST("/api/v1/projects/{id}/export", { params: { path: { id } }, body: { params } }));

export const importProject = (data: { name: string; uploads: string[] }) =>
  body(api.POST("/api/v1/projects/import", { body: data }));
