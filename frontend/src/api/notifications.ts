import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";

/** How many are unread. Asked again when a job ends, and now and then for what no job tells. */
export const unreadQuery = queryOptions({
  queryKey: ["notifications", "unread"],
  queryFn: async () => (await body(api.GET("/api/v1/notifications/unread"))).unread,
  refetchInterval: 30_000,
});

export const notificationsQuery = queryOptions({
  queryKey: ["notifications", "newest"],
  queryFn: async () => (await body(api.GET("/api/v1/notifications", { params: { query: { page_size: 20 } } }))).results,
});

export const markAllRead = () => body(api.POST("/api/v1/notifications/mark-read", { body: {} }));
