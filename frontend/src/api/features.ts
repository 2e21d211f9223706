import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import { madeFrom, type Edited } from "./names";
import type { operations } from "./schema";
import type { FeatureDetail } from "./types";
import type { Percentile } from "@/patches/plan";

export type FeatureListQuery = operations["features_list"]["parameters"]["query"];
export type FeatureOrdering = NonNullable<FeatureListQuery["ordering"]>;

/** Pages hold many rows: a row is small, a round trip is not. */
const PAGE = 200;

/** The cursor inside a link to another page. */
export function cursorOf(link: string | null | undefined): string | undefined {
  return link ? (new URL(link).searchParams.get("cursor") ?? undefined) : undefined;
}

/** A long list, page by page. */
export const featuresQuery = (filters: Omit<FeatureListQuery, "cursor" | "page_size">) =>
  infiniteQueryOptions({
    queryKey: ["features", filters],
    queryFn: ({ pageParam }) =>
      body(api.GET("/api/v1/features", { params: { query: { ...filters, cursor: pageParam, page_size: PAGE } } })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => cursorOf(page.next),
  });

/** The first few matches, for pickers. */
export const featureMatchesQuery = (filters: Omit<FeatureListQuery, "cursor">) =>
  queryOptions({
    queryKey: ["features", "matches", filters],
    queryFn: async () => (await body(api.GET("/api/v1/features", { params: { query: filters } }))).results,
    staleTime: 60_000,
  });

export const featureQuery = (id: string) =>
  queryOptions({
    queryKey: ["features", "detail", id],
    queryFn: () => body(api.GET("/api/v1/features/{id}", { params: { path: { id } } })),
    staleTime: 60_000,
  });

/** A feature by its SAE's row and its index, or null when there is none. */
export const featureAtQuery = (sae: string, index: number) =>
  queryOptions({
    queryKey: ["features", "at", sae, index],
    queryFn: async () =>
      (await body(api.GET("/api/v1/features", { params: { query: { sae, index, page_size: 1 } } }))).results[0] ?? null,
    staleTime: 60_000,
    enabled: index >= 0,
  });

export const updateFeature = (feature: Edited, changes: { label?: string; starred?: boolean }) =>
  body(api.PATCH("/api/v1/features/{id}", { params: madeFrom(feature), body: changes }));

/** The feature's 99.9th percentile: as an activation, and as the length it adds to the residual stream. */
export function percentileOf({ details }: FeatureDetail): Percentile {
  return { activation: details.p999, length: details.p999 * details.decoder_norm };
}
