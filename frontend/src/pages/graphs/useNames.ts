import { useQueries, useQuery } from "@tanstack/react-query";
import { useCallback, useMemo } from "react";
import { featureAtQuery } from "@/api/features";
import { saesQuery } from "@/api/saes";
import type { Sae } from "@/api/types";
import type { Graph, GraphNode } from "@/graphs/types";
import { tokenLabel } from "@/science/tokens";

/** Rows of features are asked for one by one; graphs with more features show their numbers only. */
const MOST = 120;

export interface Names {
  /** The SAE of the project that a fingerprint names. */
  saeOf: (fingerprint: string) => Sae | undefined;
  /** A label, or the token it fires on most, by node. */
  names: ReadonlyMap<string, string>;
}

const keyOf = (node: GraphNode) => `${node.sae}:${node.index}`;

/** Names that people and analyses gave to the features of a graph. */
export function useNames(project: string, graph: Graph): Names {
  const { data: saes } = useQuery(saesQuery(project));
  const saeOf = useCallback((fingerprint: string) => saes?.find((sae) => sae.fingerprint === fingerprint), [saes]);
  const features = useMemo(() => [...new Map(graph.nodes.filter((node) => node.kind === "feature").map((node) => [keyOf(node), node])).values()], [graph.nodes]);
  const asked = features.length > MOST ? [] : features.flatMap((node) => {
    const sae = saeOf(node.sae);
    return sae && node.index !== null ? [{ key: keyOf(node), sae: sae.id, index: node.index }] : [];
  });
  const keys = asked.map(({ key }) => key).join(" ");
  const rows = useQueries({
    queries: asked.map(({ sae, index }) => featureAtQuery(sae, index)),
    combine: (found) => found.map(({ data }) => data ?? undefined),
  });
  const byKey = useMemo(() => new Map(keys.split(" ").map((key, at) => [key, rows[at]])), [keys, rows]);
  const names = useMemo(() => {
    const found = new Map<string, string>();
    for (const node of graph.nodes) {
      const row = node.kind === "feature" ? byKey.get(keyOf(node)) : undefined;
      const name = row ? row.label || (row.top_tokens[0] === undefined ? "" : tokenLabel(row.top_tokens[0])) : node.kind === "target" ? "" : node.text;
      if (name) found.set(node.id, name);
    }
    return found;
  }, [graph.nodes, byKey]);
  return { saeOf, names };
}
