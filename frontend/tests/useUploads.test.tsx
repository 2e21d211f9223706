import { act, renderHook } from "@testing-library/react";
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { IncomingFile } from "@/api/uploads";
import { useUploads } from "@/files/useUploads";

const uploadFile = vi.hoisted(() => vi.fn<(incoming: IncomingFile, options: { onProgress: (sent: number) => void }) => Promise<string>>());
vi.mock("@/api/uploads", async (original) => ({ ...(await original<object>()), uploadFile }));
const { resumeKey } = await import("@/api/uploads");

const incoming = (path: string): IncomingFile => ({ path, file: new File([path], path, { lastModified: 1 }) });

describe("uploads for a request", () => {
  const files = ["a.json", "bb.json"].map(incoming);

  beforeEach(() => {
    localStorage.clear();
    for (const one of files) localStorage.setItem(resumeKey(one), `kept ${one.path}`);
    uploadFile.mockImplementation((one, { onProgress }) => {
      onProgress(one.file.size);
      return Promise.resolve(`id of ${one.path}`);
    });
  });

  it("give it the ids in the order of the files, and are forgotten then", async () => {
    const { result } = renderHook(() => useUploads());
    const request = vi.fn((ids: string[]) => Promise.resolve(ids.length));
    await act(async () => expect(await result.current.sendFor(files, request)).toBe(2));
    expect(request).toHaveBeenCalledWith(["id of a.json", "id of bb.json"]);
    expect(result.current).toMatchObject({ sent: 13, total: 13, running: false });
    expect(localStorage.length).toBe(0);
  });

  it("can be continued when the request is refused", async () => {
    const { result } = renderHook(() => useUploads());
    const refused = () => Promise.reject(new Error("name is taken"));
    await act(() => expect(result.current.sendFor(files, refused)).rejects.toThrow("name is taken"));
    expect(localStorage.getItem(resumeKey(files[0]!))).toBe("kept a.json");
  });
});
