/** The typed client of `/api/v1`. Every failure is thrown as an {@link ApiError}. */

import createClient, { type Middleware } from "openapi-fetch";
import { errorOf, unreachable } from "./errors";
import type { paths } from "./schema";

export function csrfToken(): string {
  return /(?:^|;\s*)csrftoken=([^;]+)/.exec(document.cookie)?.[1] ?? "";
}

const safe = new Set(["GET", "HEAD", "OPTIONS"]);

const middleware: Middleware = {
  onRequest({ request }) {
    if (!safe.has(request.method)) request.headers.set("X-CSRFToken", csrfToken());
    // Lets the server recognise the request if the network sends it twice; routes without need of it ignore it.
    if (request.method === "POST") request.headers.set("Idempotency-Key", randomId());
    return request;
  },
  async onResponse({ response }) {
    if (response.ok) return undefined;
    throw errorOf(response.status, await response.json().catch(() => null));
  },
  onError({ error }) {
    return error instanceof TypeError ? unreachable() : undefined;
  },
};

export const api = createClient<paths>({ baseUrl: window.location.origin, credentials: "same-origin" });
api.use(middleware);

/** The body of a successful answer. */
export async function body<Data>(answer: Promise<{ data?: Data; response: Response }>): Promise<Data> {
  const { data, response } = await answer;
  if (data === undefined && response.status !== 204) throw errorOf(response.status, null);
  return data as Data;
}

/** A random UUID. Browsers have `crypto.randomUUID` on HTTPS and localhost only. */
export function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
