import { Skeleton, Stack } from "@mantine/core";
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { ErrorNote } from "./ErrorNote";

interface LoadedProps<Data> {
  query: UseQueryResult<Data>;
  /** What is being loaded, for the error: "the jobs". */
  what: string;
  rows?: number;
  children: (data: Data) => ReactNode;
}

/** The content once it is there; a placeholder before, an error note with a retry instead. */
export function Loaded<Data>({ query, what, rows = 4, children }: LoadedProps<Data>) {
  if (query.data !== undefined) {
    return (
      <>
        {query.isRefetchError && <ErrorNote error={query.error} doing={`Refreshing ${what}`} retry={() => void query.refetch()} />}
        {children(query.data)}
      </>
    );
  }
  if (query.isError) return <ErrorNote error={query.error} doing={`Loading ${what}`} retry={() => void query.refetch()} />;
  return (
    <Stack gap="xs" aria-busy="true" aria-label={`Loading ${what}`}>
      {Array.from({ length: rows }, (_, row) => <Skeleton key={row} height={22} radius="sm" />)}
    </Stack>
  );
}
