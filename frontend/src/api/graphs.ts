/** Provenance graphs: stored documents, what is arranged on their pages, and what people say about them. */

import { queryOptions } from "@tanstack/react-query";
import type { Graph, GraphTarget } from "@/graphs/types";
import { api, body } from "./client";
import { madeFrom, type Edited } from "./names";
import type { components } from "./schema";

type Schemas = components["schemas"];

export type GraphRow = Schemas["GraphRow"];
export type GraphDetail = Schemas["GraphDetail"];
export type GraphComment = Schemas["GraphComment"];

export const graphsQuery = (project: string) =>
  queryOptions({
    queryKey: ["graphs", { project }],
    queryFn: async () => (await body(api.GET("/api/v1/graphs", { params: { query: { project } } }))).results,
  });

export const graphQuery = (id: string) =>
  queryOptions({
    queryKey: ["graphs", id],
    queryFn: () => body(api.GET("/api/v1/graphs/{id}", { params: { path: { id } } })),
  });

/** The graph itself, which never changes. */
export const graphDocumentQuery = (id: string) =>
  queryOptions({
    queryKey: ["graphs", id, "document"],
    queryFn: () => body<Graph>(api.GET("/api/v1/graphs/{id}/document", { params: { path: { id } } })),
    staleTime: Infinity,
  });

interface NewGraph {
  model: string;
  name: string;
  prompt: string;
  target: GraphTarget;
  /** Ids. */
  saes: string[];
  hops: number;
  parents: number;
  shown: number;
  verify: boolean;
}

/** Compute a graph in a job. */
export const createGraph = (data: NewGraph) => body(api.POST("/api/v1/graphs", { body: data }));

/** Keep a graph that a live session made. */
export const saveGraph = (model: string, name: string, document: Graph) => body(api.POST("/api/v1/graphs/save", { body: { model, name, document } }));

/** Bring a graph in that a file holds: what is in it, or the id of its upload. */
export const importGraph = (data: { project: string; model: string | null; name: string } & ({ document: Record<string, unknown> } | { upload: string })) =>
  body(api.POST("/api/v1/graphs/import", { body: data }));

export const updateGraph = (graph: Edited, changes: { name?: string; note?: string; view?: Record<string, unknown> }) =>
  body(api.PATCH("/api/v1/graphs/{id}", { params: madeFrom(graph), body: changes }));

export const deleteGraph = (id: string) => body(api.DELETE("/api/v1/graphs/{id}", { params: { path: { id } } }));

export const graphCommentsQuery = (id: string) =>
  queryOptions({
    queryKey: ["graphs", id, "comments"],
    queryFn: () => body(api.GET("/api/v1/graphs/{id}/comments", { params: { path: { id } } })),
  });

export const addGraphComment = (id: string, text: string) => body(api.POST("/api/v1/graphs/{id}/comments", { params: { path: { id } }, body: { text } }));

export const deleteGraphComment = (id: string, comment: string) =>
  body(api.DELETE("/api/v1/graphs/{id}/comments/{comment_id}", { params: { path: { id, comment_id: comment } } }));

/** Address of a graph as a file. */
export const graphFileUrl = (id: string, format: "microscope" | "attribution_graph") => `/api/v1/graphs/${id}/export?format=${format}`;

/** Record blocks below a target in one pass and train an SAE on each. */
export const makeUpstream = (about: { sae: string } | { model: string; layer?: number }) => body(api.POST("/api/v1/graphs/upstream", { body: { name: "", ...about } }));
