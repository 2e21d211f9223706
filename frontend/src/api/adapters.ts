/** LoRA adapters that were brought in. */

import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";

/** Adapters of a model that are ready to be used, newest first. */
export const adaptersQuery = (model: string) =>
  queryOptions({
    queryKey: ["adapters", { model }],
    queryFn: async () => (await body(api.GET("/api/v1/adapters", { params: { query: { model, state: "ready" } } }))).results,
  });

export const importAdapter = (data: { model: string; name: string; uploads: string[] }) =>
  body(api.POST("/api/v1/adapters", { body: data }));
