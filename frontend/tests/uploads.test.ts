import { beforeEach, describe, expect, it, vi } from "vitest";
import { suggestedName, wanted } from "@/files/dropped";

/** A server that keeps what it is sent, and fails when it is told to. */
class UploadServer {
  readonly files = new Map<string, { path: string; size: number; data: number[] }>();
  patches = 0;
  failures: (() => Response | null)[] = [];

  readonly answer = async (input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
    const request = input instanceof Request ? input : new Request(new URL(String(input), "http://x"), init);
    const id = /uploads\/(.+)$/.exec(request.url)?.[1];
    if (request.method === "POST") {
      const { path, bytes } = (await request.json()) as { path: string; bytes: number };
      this.files.set(`u${this.files.size}`, { path, size: bytes, data: [] });
      return this.show(`u${this.files.size - 1}`, 201);
    }
    const file = this.files.get(id!);
    if (!file) return new Response(JSON.stringify({ errors: [] }), { status: 404 });
    if (request.method === "GET") return this.show(id!, 200);
    this.patches++;
    const failure = this.failures.shift()?.();
    if (failure === null) throw new TypeError("connection lost");
    const piece = [...new Uint8Array(await request.arrayBuffer())];
    if (failure) {
      // It was cut: half of the piece has arrived.
      file.data.push(...piece.slice(0, piece.length / 2));
      return failure;
    }
    if (Number(request.headers.get("Upload-Offset")) !== file.data.length) return new Response("{}", { status: 409 });
    file.data.push(...piece);
    return new Response(null, { status: 204, headers: { "Upload-Offset": String(file.data.length) } });
  };

  private show(id: string, status: number): Response {
    const { path, size, data } = this.files.get(id)!;
    return Response.json({ id, path, bytes: size, offset: data.length, complete: data.length === size }, { status });
  }
}

let server: UploadServer;
// The API client takes hold of fetch when it is loaded.
vi.stubGlobal("fetch", (input: RequestInfo | URL, init?: RequestInit) => server.answer(input, init));
const { forgetUploads, resumeKey, uploadFile } = await import("@/api/uploads");

const bytes = Array.from({ length: 1000 }, (_, index) => index % 251);
const incoming = { path: "sae/w.safetensors", file: new File([new Uint8Array(bytes)], "w.safetensors", { lastModified: 5 }) };
const quick = { pieceBytes: 300, wait: () => Promise.resolve() };

describe("resumable uploads", () => {
  beforeEach(() => {
    server = new UploadServer();
    localStorage.clear();
  });

  it("sends a file in pieces", async () => {
    const seen: number[] = [];
    const id = await uploadFile(incoming, { ...quick, onProgress: (sent) => seen.push(sent) });
    expect(server.files.get(id)?.data).toEqual(bytes);
    expect(seen).toEqual([0, 300, 600, 900, 1000]);
  });

  it("asks where it was after every kind of failure, and goes on there", async () => {
    server.failures = [() => null, () => new Response("{}", { status: 502 }), () => new Response("{}", { status: 423 })];
    const id = await uploadFile(incoming, quick);
    expect(server.files.get(id)?.data).toEqual(bytes);
    expect(server.files.size).toBe(1);
  });

  it("continues in another visit instead of starting again", async () => {
    const stop = new AbortController();
    const first = uploadFile(incoming, { ...quick, signal: stop.signal, onProgress: (sent) => sent >= 600 && stop.abort() });
    await expect(first).rejects.toThrow();
    const before = server.patches;
    await uploadFile(incoming, quick);
    expect(server.files.size).toBe(1);
    expect(server.patches - before).toBe(2);
    forgetUploads([incoming]);
    expect(localStorage.getItem(resumeKey(incoming))).toBeNull();
  });

  it("gives up when the server refuses", async () => {
    server.failures = [() => Response.json({ errors: [{ code: "upload_overflow", detail: "Too long." }] }, { status: 413 })];
    await expect(uploadFile(incoming, quick)).rejects.toMatchObject({ code: "upload_overflow" });
  });
});

describe("dropped files", () => {
  const at = (path: string) => ({ path, file: new File([], path) });
  it("leaves out what systems put into folders", () => {
    expect(["a/.DS_Store", ".git/x", "__MACOSX/a", "a/b.json"].filter(wanted)).toEqual(["a/b.json"]);
  });
  it("suggests the folder's name", () => {
    expect(suggestedName([at("topk/cfg.json"), at("topk/w.safetensors")])).toBe("topk");
    expect(suggestedName([at("sae.safetensors")])).toBe("sae");
    expect(suggestedName([at("a.json"), at("b.json")])).toBe("");
  });
});
