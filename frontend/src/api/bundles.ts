/** Whole projects as one file. */

import { api, body, idempotencyKey } from "./client";

const once = () => ({ "Idempotency-Key": idempotencyKey() });

export const exportProject = (id: string, params: { recordings: boolean }) =>
  body(api.POST("/api/v1/projects/{id}/export", { params: { path: { id }, header: once() }, body: { params } }));

export const importProject = (data: { name: string; uploads: string[] }) =>
  body(api.POST("/api/v1/projects/import", { params: { header: once() }, body: data }));
