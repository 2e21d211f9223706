/** What can go wrong between the browser and the portal, in one shape. */

export interface Problem {
  code: string;
  detail: string;
  attr: string | null;
  hint: string;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly problems: readonly Problem[],
  ) {
    super(problems[0]?.detail ?? `The server answered with status ${status}.`);
    this.name = "ApiError";
  }

  get code(): string {
    return this.problems[0]?.code ?? "error";
  }

  get hint(): string {
    return this.problems[0]?.hint ?? "";
  }

  /** What is said about one field of the request. */
  about(attr: string): string | undefined {
    return this.problems.find((problem) => problem.attr === attr || problem.attr?.startsWith(`${attr}.`))?.detail;
  }

  /** What is said about no field in particular, or about fields the form does not have. */
  general(fields: readonly string[] = []): Problem[] {
    return this.problems.filter((problem) => !fields.some((field) => problem.attr === field || problem.attr?.startsWith(`${field}.`)));
  }
}

/** A problem as it arrives: the portal sends all four, others may leave some out. */
type RawProblem = Pick<Problem, "code" | "detail"> & Partial<Problem>;

function isProblem(value: unknown): value is RawProblem {
  return typeof value === "object" && value !== null && "code" in value && "detail" in value;
}

/** An error from the body of a response, whatever answered. */
export function errorOf(status: number, body: unknown): ApiError {
  const errors: unknown = typeof body === "object" && body !== null && "errors" in body ? body.errors : null;
  const problems = Array.isArray(errors) ? errors.filter(isProblem) : [];
  if (problems.length > 0) return new ApiError(status, problems.map((one) => ({ hint: "", attr: null, ...one })));
  const code = status >= 500 ? "server_error" : "error";
  const hint = status >= 500 ? "Try again; if it stays so, the server’s log says more." : "";
  return new ApiError(status, [{ code, detail: `The server answered with status ${status}.`, attr: null, hint }]);
}

/** The server could not be reached at all. */
export function unreachable(): ApiError {
  return new ApiError(0, [
    { code: "unreachable", detail: "The server cannot be reached.", attr: null, hint: "Check that it runs, and your connection." },
  ]);
}

/** Anything thrown, as an error that can be shown. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const detail = error instanceof Error ? error.message : String(error);
  return new ApiError(0, [{ code: "browser_error", detail, attr: null, hint: "Reload the page." }]);
}
