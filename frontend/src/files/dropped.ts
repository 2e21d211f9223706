/** Files and whole folders that were dropped on the page or chosen in a dialog, with their paths. */

import type { IncomingFile } from "@/api/uploads";
import { bytes } from "@/science/format";

/** False for hidden files and files that operating systems leave in folders. */
export function wanted(path: string): boolean {
  return !path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX" || part === "Thumbs.db");
}

function readAll(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const found: FileSystemEntry[] = [];
  return new Promise((resolve, reject) => {
    // Browsers give at most a hundred entries at a time.
    const next = () =>
      reader.readEntries((entries) => {
        if (entries.length === 0) resolve(found);
        else {
          found.push(...entries);
          next();
        }
      }, reject);
    next();
  });
}

async function walk(entry: FileSystemEntry, prefix: string): Promise<IncomingFile[]> {
  const path = `${prefix}${entry.name}`;
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ path, file }];
  }
  const children = await readAll(entry as FileSystemDirectoryEntry);
  return (await Promise.all(children.map((child) => walk(child, `${path}/`)))).flat();
}

/** Everything in a drop, folders included. */
export async function droppedFiles(transfer: DataTransfer): Promise<IncomingFile[]> {
  // The list is only readable during the event: entries are taken before anything is awaited.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const found =
    entries.length > 0
      ? (await Promise.all(entries.map((entry) => walk(entry, "")))).flat()
      : [...transfer.files].map((file) => ({ path: file.name, file }));
  return found.filter(({ path }) => wanted(path));
}

/** Everything chosen in a file dialog; a chosen folder gives relative paths. */
export function chosenFiles(list: FileList | null): IncomingFile[] {
  return [...(list ?? [])]
    .map((file) => ({ path: file.webkitRelativePath || file.name, file }))
    .filter(({ path }) => wanted(path));
}

/** How many files, how large, and what the first of them are called. */
export function summaryOf(files: readonly IncomingFile[]): string {
  const size = bytes(files.reduce((sum, { file }) => sum + file.size, 0));
  const names = files.slice(0, 4).map(({ path }) => path).join(", ");
  return `${files.length} ${files.length === 1 ? "file" : "files"}, ${size}: ${names}${files.length > 4 ? " …" : ""}`;
}

/** The common folder of files, or the only file's name without its ending: what to call what they are. */
export function suggestedName(files: readonly IncomingFile[]): string {
  const first = files[0];
  if (!first) return "";
  const top = first.path.split("/")[0] ?? "";
  if (first.path.includes("/") && files.every(({ path }) => path.startsWith(`${top}/`))) return top;
  return files.length === 1 ? top.replace(/\.[^.]+$/, "") : "";
}
