import { useQueryClient } from "@tanstack/react-query";

/** Returns a function that asks again for everything on screen of some kinds: `invalidate("saes", "jobs")`. */
export function useInvalidate() {
  const queries = useQueryClient();
  return async (...kinds: string[]): Promise<void> => {
    await Promise.all(kinds.map((kind) => queries.invalidateQueries({ queryKey: [kind] })));
  };
}
