/** Signing in and out, through allauth's browser API. */

import { queryOptions } from "@tanstack/react-query";
import { api, body, csrfToken } from "./client";
import { ApiError, unreachable, type Problem } from "./errors";

const BASE = "/_allauth/browser/v1";

async function allauth(method: "GET" | "POST" | "DELETE", path: string, data?: unknown, headers: Record<string, string> = {}): Promise<Response> {
  try {
    return await fetch(`${BASE}${path}`, {
      method,
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken(), ...headers },
      body: data === undefined ? undefined : JSON.stringify(data),
    });
  } catch {
    throw unreachable();
  }
}

interface AllauthBody {
  data?: { flows?: { id: string; is_pending?: boolean }[] };
  meta?: { is_authenticated?: boolean };
  errors?: { code: string; message: string; param?: string }[];
}

/** What allauth said, as an error of the shape the pages know. */
function failure(status: number, answer: AllauthBody): ApiError {
  const problems: Problem[] = (answer.errors ?? []).map((error) => ({
    code: error.code,
    detail: error.message,
    attr: error.param ?? null,
    hint: hintFor(error.code),
  }));
  return new ApiError(status, problems.length > 0 ? problems : [refusal(status)]);
}

function refusal(status: number): Problem {
  const problem = { attr: null, hint: "Try again." };
  if (status === 403) return { ...problem, code: "closed", detail: "This is not open to you.", hint: "Ask for an invitation." };
  if (status === 429) return { ...problem, code: "too_many_attempts", detail: "Too many attempts.", hint: "Wait a few minutes, then try again." };
  return { ...problem, code: "sign_in_failed", detail: `The server answered with status ${status}.` };
}

function pending(answer: AllauthBody, flow: string): boolean {
  return answer.data?.flows?.some((one) => one.id === flow && one.is_pending === true) ?? false;
}

async function answerOf(response: Response): Promise<AllauthBody> {
  return (await response.json().catch(() => ({}))) as AllauthBody;
}

/** The password has to be given again before something sensitive. */
export class PasswordNeeded extends Error {}

/** A change of the own account. @throws PasswordNeeded when the server wants the password first. */
export async function accountCall<Data>(method: "GET" | "POST" | "DELETE", path: string, data?: unknown): Promise<Data> {
  const response = await allauth(method, path, data);
  const answer = await answerOf(response);
  if (response.status === 401 && answer.meta?.is_authenticated === true) throw new PasswordNeeded();
  if (!response.ok) throw failure(response.status, answer);
  return answer.data as Data;
}

export type SignedIn = "done" | "second-factor" | "verify-email";

function outcome(response: Response, answer: AllauthBody): SignedIn {
  if (response.ok || response.status === 409) return "done"; // 409: signed in already
  if (response.status === 401 && pending(answer, "mfa_authenticate")) return "second-factor";
  if (response.status === 401 && pending(answer, "verify_email")) return "verify-email";
  throw failure(response.status, answer);
}

/**
 * Sign in with a user name or an e-mail address.
 * @throws ApiError with what was wrong.
 */
export async function signIn(name: string, password: string): Promise<SignedIn> {
  if (csrfToken() === "") await allauth("GET", "/config");
  const who = name.includes("@") ? { email: name } : { username: name };
  const response = await allauth("POST", "/auth/login", { ...who, password });
  return outcome(response, await answerOf(response));
}

/** The code of an authenticator application, or a recovery code, in the middle of a sign-in. */
export async function submitCode(code: string): Promise<SignedIn> {
  const response = await allauth("POST", "/auth/2fa/authenticate", { code });
  return outcome(response, await answerOf(response));
}

export interface NewAccount {
  username: string;
  email: string;
  password: string;
}

/** Make an account; an invitation may be needed for that. */
export async function signUp(account: NewAccount, invitation?: string): Promise<SignedIn> {
  if (csrfToken() === "") await allauth("GET", "/config");
  const response = await allauth("POST", "/auth/signup", account, invitation ? { "X-Invitation": invitation } : {});
  return outcome(response, await answerOf(response));
}

export async function forgetPassword(email: string): Promise<void> {
  if (csrfToken() === "") await allauth("GET", "/config");
  const response = await allauth("POST", "/auth/password/request", { email });
  if (!response.ok) throw failure(response.status, await answerOf(response));
}

/** Set a new password with the key of a mail. 401 says that it is set and nobody is signed in yet. */
export async function resetPassword(key: string, password: string): Promise<void> {
  if (csrfToken() === "") await allauth("GET", "/config");
  const response = await allauth("POST", "/auth/password/reset", { key, password });
  if (!response.ok && response.status !== 401) throw failure(response.status, await answerOf(response));
}

export async function verifyEmail(key: string): Promise<void> {
  if (csrfToken() === "") await allauth("GET", "/config");
  const response = await allauth("POST", "/auth/email/verify", { key });
  if (!response.ok && response.status !== 401) throw failure(response.status, await answerOf(response));
}

export const reauthenticate = (password: string) => accountCall<unknown>("POST", "/auth/reauthenticate", { password });

interface SiteConfig {
  account: { is_open_for_signup?: boolean };
  socialaccount?: { providers: { id: string; name: string }[] };
}

/** What the sign-in page may offer. */
export const siteQuery = queryOptions({
  queryKey: ["site"],
  queryFn: () => accountCall<SiteConfig>("GET", "/config"),
  staleTime: 60 * 60_000,
});

/** Leave for the single sign-on; the server sends the browser back to `next`. */
export function goToProvider(provider: string, next: string): void {
  const form = document.createElement("form");
  form.method = "POST";
  form.action = `${BASE}/auth/provider/redirect`;
  const values = { provider, process: "login", callback_url: next, csrfmiddlewaretoken: csrfToken() };
  for (const [name, value] of Object.entries(values)) {
    const input = document.createElement("input");
    Object.assign(input, { type: "hidden", name, value });
    form.append(input);
  }
  document.body.append(form);
  form.submit();
}

function hintFor(code: string): string {
  if (code.endsWith("password_mismatch")) return "Check both; capital letters matter.";
  if (code === "too_many_login_attempts") return "Wait a few minutes, then try again.";
  if (code === "incorrect_code") return "Codes change every 30 seconds and work once; check the clock of your phone.";
  return "";
}

export async function signOut(): Promise<void> {
  // The answer is 401: "you are not signed in", which is what was wanted.
  await allauth("DELETE", "/auth/session");
}

/** Who is signed in, or null. */
export const meQuery = queryOptions({
  queryKey: ["me"],
  queryFn: async () => {
    try {
      return await body(api.GET("/api/v1/me"));
    } catch (error) {
      if (error instanceof ApiError && (error.status === 401 || error.status === 403)) return null;
      throw error;
    }
  },
  staleTime: 5 * 60_000,
});
