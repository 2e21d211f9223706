import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import { madeFrom, type Edited } from "./names";
import type { Role } from "./types";

export const projectsQuery = queryOptions({
  queryKey: ["projects"],
  queryFn: async () => (await body(api.GET("/api/v1/projects"))).results,
});

export const projectQuery = (id: string) =>
  queryOptions({
    queryKey: ["projects", id],
    queryFn: () => body(api.GET("/api/v1/projects/{id}", { params: { path: { id } } })),
    staleTime: 60_000,
  });

export const createProject = (data: { name: string; description: string }) =>
  body(api.POST("/api/v1/projects", { body: data }));

export const updateProject = (project: Edited, changes: { name?: string; description?: string }) =>
  body(api.PATCH("/api/v1/projects/{id}", { params: madeFrom(project), body: changes }));

export const membersQuery = (project: string) =>
  queryOptions({
    queryKey: ["projects", project, "members"],
    queryFn: () => body(api.GET("/api/v1/projects/{id}/members", { params: { path: { id: project } } })),
  });

export const addMember = (project: string, data: { user: string; role: Role }) =>
  body(api.POST("/api/v1/projects/{id}/members", { params: { path: { id: project } }, body: data }));

export const changeRole = (project: string, user: string, role: Role) =>
  body(api.PATCH("/api/v1/projects/{id}/members/{user_id}", {
    params: { path: { id: project, user_id: user } },
    body: { role },
  }));

export const removeMember = (project: string, user: string) =>
  body(api.DELETE("/api/v1/projects/{id}/members/{user_id}", { params: { path: { id: project, user_id: user } } }));

export const lineageQuery = (project: string) =>
  queryOptions({
    queryKey: ["lineage", project],
    queryFn: () => body(api.GET("/api/v1/projects/{id}/lineage", { params: { path: { id: project } } })),
  });
