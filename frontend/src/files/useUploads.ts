import { useRef, useState } from "react";
import { forgetUploads, uploadFile, type IncomingFile } from "@/api/uploads";

const AT_ONCE = 3;

export interface UploadsState {
  /** Bytes that have arrived, and all. */
  sent: number;
  total: number;
  running: boolean;
  /** Send all files, except what arrived in an earlier try, and give their ids to the request that uses them. */
  sendFor: <Answer>(files: readonly IncomingFile[], request: (ids: string[]) => Promise<Answer>) => Promise<Answer>;
  cancel: () => void;
}

/** Sends several files, a few at a time, and tells how far they are together. */
export function useUploads(): UploadsState {
  const [sent, setSent] = useState(0);
  const [total, setTotal] = useState(0);
  const [running, setRunning] = useState(false);
  const abort = useRef<AbortController | null>(null);

  const send = async (files: readonly IncomingFile[]) => {
    const controller = new AbortController();
    abort.current = controller;
    const done = files.map(() => 0);
    const ids = files.map(() => "");
    setTotal(files.reduce((sum, { file }) => sum + file.size, 0));
    setSent(0);
    setRunning(true);
    let next = 0;
    const worker = async () => {
      for (let index = next++; index < files.length; index = next++) {
        const onProgress = (bytes: number) => {
          done[index] = bytes;
          setSent(done.reduce((sum, one) => sum + one, 0));
        };
        ids[index] = await uploadFile(files[index]!, { onProgress, signal: controller.signal });
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(AT_ONCE, files.length) }, worker));
      return ids;
    } catch (error) {
      controller.abort();
      throw error;
    } finally {
      setRunning(false);
    }
  };
  const sendFor: UploadsState["sendFor"] = async (files, request) => {
    const answer = await request(await send(files));
    forgetUploads(files);
    return answer;
  };
  return { sent, total, running, sendFor, cancel: () => abort.current?.abort() };
}
