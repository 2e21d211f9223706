import { useEffect, useRef, useState } from "react";
import type { PinnedAnswer, PinnedRequest } from "@/graphs/pinned.worker";
import type { Graph } from "@/graphs/types";

/** Completeness of the pinned subgraph, computed in a worker; undefined until the newest answer is there. */
export function usePinned(graph: Graph, pins: readonly string[]): number | null | undefined {
  const worker = useRef<Worker | null>(null);
  const asked = useRef(0);
  const [answer, setAnswer] = useState<PinnedAnswer & { of: Graph; for: readonly string[] }>();
  const question = useRef({ graph, pins });

  useEffect(() => {
    const made = new Worker(new URL("../../graphs/pinned.worker.ts", import.meta.url), { type: "module" });
    made.onmessage = ({ data }: MessageEvent<PinnedAnswer>) => {
      if (data.ask === asked.current) setAnswer({ ...data, of: question.current.graph, for: question.current.pins });
    };
    worker.current = made;
    return () => made.terminate();
  }, []);

  useEffect(() => {
    const { nodes, edges, accounts } = graph;
    worker.current?.postMessage({ graph: { nodes, edges, accounts } } satisfies PinnedRequest);
  }, [graph]);

  useEffect(() => {
    asked.current += 1;
    question.current = { graph, pins };
    worker.current?.postMessage({ ask: asked.current, pins: [...pins] } satisfies PinnedRequest);
  }, [graph, pins]);

  return answer?.of === graph && answer.for === pins ? answer.completeness : undefined;
}
