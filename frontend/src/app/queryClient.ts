import { QueryCache, QueryClient } from "@tanstack/react-query";
import { ApiError } from "@/api/errors";

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      // A refusal stays a refusal; only a server that fails or cannot be reached is asked again.
      retry: (failures, error) => !(error instanceof ApiError && error.status >= 400 && error.status < 500) && failures < 2,
      refetchOnWindowFocus: true,
    },
    mutations: { retry: false },
  },
  queryCache: new QueryCache({
    onError: (error, query) => {
      // The session ended elsewhere: the guard of the pages then leads to the sign-in page.
      if (error instanceof ApiError && error.status === 401 && query.queryKey[0] !== "me") queryClient.setQueryData(["me"], null);
    },
  }),
});
