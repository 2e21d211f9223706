/** Resumable uploads: pieces with checksums, continued where the server says they stopped. */

import { api, body, csrfToken } from "./client";
import { asApiError, errorOf, unreachable } from "./errors";
import type { components } from "./schema";

type Upload = components["schemas"]["Upload"];

export interface IncomingFile {
  /** Place in the folder that is sent, with `/`. */
  path: string;
  file: File;
}

interface Options {
  /** Bytes of this file that have arrived. */
  onProgress?: (sent: number) => void;
  signal?: AbortSignal;
  /** For tests. */
  pieceBytes?: number;
  wait?: (milliseconds: number) => Promise<void>;
}

export const PIECE_BYTES = 4 * 2 ** 20;
const RETRIES = 8;

const sleep = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds));

/** What tells a file from another when the page is opened again and the same folder is dropped. */
export function resumeKey({ path, file }: IncomingFile): string {
  return `upload:${path}:${file.size}:${file.lastModified}`;
}

async function sha256Base64(piece: ArrayBuffer): Promise<string | null> {
  // Only secure contexts have it: https and localhost.
  if (!("subtle" in crypto)) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", piece));
  return btoa(String.fromCharCode(...digest));
}

async function existing(incoming: IncomingFile): Promise<Upload | null> {
  const id = localStorage.getItem(resumeKey(incoming));
  if (!id) return null;
  try {
    const upload = await body(api.GET("/api/v1/uploads/{id}", { params: { path: { id } } }));
    return upload.bytes === incoming.file.size && upload.path === incoming.path ? upload : null;
  } catch (error) {
    if (asApiError(error).status !== 404) throw error;
    return null;
  }
}

async function sendPiece(id: string, offset: number, piece: Blob, signal?: AbortSignal): Promise<number> {
  const data = await piece.arrayBuffer();
  const digest = await sha256Base64(data);
  let response: Response;
  try {
    response = await fetch(`/api/v1/uploads/${id}`, {
      method: "PATCH",
      body: data,
      signal,
      credentials: "same-origin",
      headers: {
        "Content-Type": "application/offset+octet-stream",
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": String(offset),
        "X-CSRFToken": csrfToken(),
        ...(digest ? { "Upload-Checksum": `sha256 ${digest}` } : {}),
      },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable();
  }
  if (!response.ok) throw errorOf(response.status, await response.json().catch(() => null));
  return Number(response.headers.get("Upload-Offset"));
}

/** Whether the same piece may work a moment later: the connection, a busy or restarting server, a damaged piece. */
function passing(status: number): boolean {
  return status === 0 || status === 409 || status === 423 || status === 460 || status >= 500;
}

/** Send one file, continuing what an earlier visit began; returns the id of the finished upload. */
export async function uploadFile(incoming: IncomingFile, options: Options = {}): Promise<string> {
  const { file, path } = incoming;
  const { onProgress, signal, pieceBytes = PIECE_BYTES, wait = sleep } = options;
  const key = resumeKey(incoming);
  const upload = (await existing(incoming)) ?? (await body(api.POST("/api/v1/uploads", { body: { path, bytes: file.size } })));
  localStorage.setItem(key, upload.id);
  let offset = upload.offset;
  let failures = 0;
  onProgress?.(offset);
  while (offset < file.size) {
    signal?.throwIfAborted();
    try {
      offset = await sendPiece(upload.id, offset, file.slice(offset, offset + pieceBytes), signal);
      failures = 0;
      onProgress?.(offset);
    } catch (error) {
      if (signal?.aborted || !passing(asApiError(error).status) || ++failures > RETRIES) throw error;
      await wait(Math.min(500 * 2 ** (failures - 1), 15_000));
      // Only the server knows what arrived.
      offset = (await existing(incoming).catch(() => null))?.offset ?? offset;
    }
  }
  return upload.id;
}

/** Forget the place of uploads that a job has taken over. */
export function forgetUploads(files: readonly IncomingFile[]): void {
  for (const one of files) localStorage.removeItem(resumeKey(one));
}
