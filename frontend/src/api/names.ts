/** Names of what jobs made, changed only if nobody else has changed them since. */

import { api, body } from "./client";

/** What a change is made from. */
export interface Edited {
  id: string;
  etag: string;
}

/** Path and `If-Match` of a change made from a row as it was loaded. */
export const madeFrom = ({ id, etag }: Edited) => ({ path: { id }, header: { "If-Match": etag } });

const RENAMED = {
  models: (row: Edited, name: string) => body(api.PATCH("/api/v1/models/{id}", { params: madeFrom(row), body: { name } })),
  corpora: (row: Edited, name: string) => body(api.PATCH("/api/v1/corpora/{id}", { params: madeFrom(row), body: { name } })),
  recordings: (row: Edited, name: string) => body(api.PATCH("/api/v1/recordings/{id}", { params: madeFrom(row), body: { name } })),
  graphs: (row: Edited, name: string) => body(api.PATCH("/api/v1/graphs/{id}", { params: madeFrom(row), body: { name } })),
  saes: (row: Edited, name: string) => body(api.PATCH("/api/v1/saes/{id}", { params: madeFrom(row), body: { name } })),
};

export type Renamed = keyof typeof RENAMED;

export const rename = async (kind: Renamed, row: Edited, name: string): Promise<void> => {
  await RENAMED[kind](row, name);
};
