import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import { madeFrom, type Edited } from "./names";
import type { EditPlan } from "./types";

export const patchesQuery = (project: string) =>
  queryOptions({
    queryKey: ["patches", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/patches", { params: { query: { project } } }))).results,
  });

export const patchQuery = (id: string) =>
  queryOptions({
    queryKey: ["patches", id],
    queryFn: () => body(api.GET("/api/v1/patches/{id}", { params: { path: { id } } })),
  });

export const patchVersionsQuery = (id: string) =>
  queryOptions({
    queryKey: ["patches", id, "versions"],
    queryFn: () => body(api.GET("/api/v1/patches/{id}/versions", { params: { path: { id } } })),
  });

export const editKindsQuery = queryOptions({
  queryKey: ["edit-kinds"],
  queryFn: () => body(api.GET("/api/v1/edit-kinds")),
  staleTime: Infinity,
});

export const createPatch = (data: { model: string; name: string; description: string; plan: EditPlan; enabled: boolean }) =>
  body(api.POST("/api/v1/patches", { body: data }));

/** Change a patch; refused with `version_conflict` when somebody else changed it since it was loaded. */
export const updatePatch = (patch: Edited, changes: { name?: string; description?: string; plan?: EditPlan }) =>
  body(api.PATCH("/api/v1/patches/{id}", {
    params: madeFrom(patch),
    body: changes,
  }));

export const togglePatch = (id: string, enabled: boolean) =>
  body(api.POST("/api/v1/patches/{id}/toggle", { params: { path: { id } }, body: { enabled } }));

export const restorePatch = (id: string, version: number) =>
  body(api.POST("/api/v1/patches/{id}/restore", { params: { path: { id } }, body: { version } }));

export const deletePatch = (id: string) => body(api.DELETE("/api/v1/patches/{id}", { params: { path: { id } } }));
