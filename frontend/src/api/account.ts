/** The own account: tokens, second factor; and invitations. */

import { queryOptions } from "@tanstack/react-query";
import { api, body } from "./client";
import { ApiError } from "./errors";
import { accountCall } from "./session";
import type { Role, Scope } from "./types";

export const tokensQuery = queryOptions({
  queryKey: ["tokens"],
  queryFn: async () => (await body(api.GET("/api/v1/tokens", { params: { query: { page_size: 100 } } }))).results,
});

export const createToken = (data: { name: string; scopes: Scope[]; project: string | null; expires_at: string | null }) =>
  body(api.POST("/api/v1/tokens", { body: data }));

export const rotateToken = (id: string) =>
  body(api.POST("/api/v1/tokens/{id}/rotate", { params: { path: { id } }, body: {} }));

export const revokeToken = (id: string) => body(api.DELETE("/api/v1/tokens/{id}", { params: { path: { id } } }));

export const updateMe = (data: { first_name: string; last_name: string }) => body(api.PATCH("/api/v1/me", { body: data }));

export const changePassword = (current: string, next: string) =>
  accountCall<unknown>("POST", "/account/password/change", { current_password: current, new_password: next });

interface Authenticator {
  type: "totp" | "recovery_codes" | "webauthn";
  created_at: number;
  last_used_at: number | null;
  unused_code_count?: number;
  total_code_count?: number;
}

export const authenticatorsQuery = queryOptions({
  queryKey: ["authenticators"],
  queryFn: () => accountCall<Authenticator[]>("GET", "/account/authenticators"),
});

const TOTP = "/account/authenticators/totp";
const RECOVERY = "/account/authenticators/recovery-codes";

/** Begin to set up codes. The answer is a 404 (nothing is set up yet) that carries the secret. */
export async function beginTotp(): Promise<string> {
  const response = await fetch(`/_allauth/browser/v1${TOTP}`, { credentials: "same-origin" });
  const answer = (await response.json()) as { meta?: { secret?: string } };
  if (answer.meta?.secret === undefined) {
    throw new ApiError(response.status, [{ code: "not_begun", detail: "Codes cannot be set up now.", attr: null, hint: "Reload the page." }]);
  }
  return answer.meta.secret;
}

export const activateTotp = (code: string) => accountCall<unknown>("POST", TOTP, { code });
export const removeTotp = () => accountCall<unknown>("DELETE", TOTP);
export const recoveryCodes = async () => (await accountCall<{ unused_codes: string[] }>("GET", RECOVERY)).unused_codes;
export const newRecoveryCodes = async () => (await accountCall<{ unused_codes: string[] }>("POST", RECOVERY, {})).unused_codes;

// --- invitations

export const linkedInvitationQuery = (text: string) =>
  queryOptions({
    queryKey: ["offer", text],
    queryFn: () => body(api.POST("/api/v1/invitations/look", { body: { text } })),
  });

export const acceptInvitation = (text: string) => body(api.POST("/api/v1/invitations/accept", { body: { text } }));
export const declineInvitation = (text: string) => body(api.POST("/api/v1/invitations/decline", { body: { text } }));

export const invitationsQuery = (project: string) =>
  queryOptions({
    queryKey: ["projects", project, "invitations"],
    queryFn: () => body(api.GET("/api/v1/projects/{id}/invitations", { params: { path: { id: project } } })),
  });

export const invite = (project: string, data: { email: string; role: Role }) =>
  body(api.POST("/api/v1/projects/{id}/invitations", { params: { path: { id: project } }, body: data }));

export const revokeInvitation = (project: string, invitation: string) =>
  body(api.DELETE("/api/v1/projects/{id}/invitations/{invitation_id}", {
    params: { path: { id: project, invitation_id: invitation } },
  }));

export const transferProject = (project: string, user: string) =>
  body(api.POST("/api/v1/projects/{id}/transfer", { params: { path: { id: project } }, body: { user } }));

export const myUsageQuery = queryOptions({
  queryKey: ["me", "usage"],
  queryFn: () => body(api.GET("/api/v1/me/usage")),
});

export const usageQuery = (project: string) =>
  queryOptions({
    queryKey: ["projects", project, "usage"],
    queryFn: () => body(api.GET("/api/v1/projects/{id}/usage", { params: { path: { id: project } } })),
  });
