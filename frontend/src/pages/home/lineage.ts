/** The lineage as columns of boxes, apart from how it is drawn. */

import type { Lineage, LineageNode } from "@/api/types";

export const STAGES = ["models", "recordings", "saes", "measured", "patches", "exports"] as const;
export type Stage = (typeof STAGES)[number];

const STAGE_OF: Record<LineageNode["type"], Stage> = {
  model: "models",
  corpus: "models",
  recording: "recordings",
  sae: "saes",
  adapter: "saes",
  evaluation: "measured",
  analysis: "measured",
  graph: "measured",
  patch: "patches",
  export: "exports",
};

export interface Layout {
  columns: Record<Stage, LineageNode[]>;
  edges: { source: string; target: string }[];
}

/**
 * Boxes by stage, and the lines between neighbouring stages. A patch is made of an SAE's features, so its
 * line starts at the analysis that described them where there is one.
 */
export function layoutOf(lineage: Lineage): Layout {
  const columns: Layout["columns"] = { models: [], recordings: [], saes: [], measured: [], patches: [], exports: [] };
  for (const node of lineage.nodes) columns[STAGE_OF[node.type]].push(node);
  const types = new Map(lineage.nodes.map((node) => [node.id, node.type]));
  const analysisOf = new Map(
    lineage.edges.filter((edge) => types.get(edge.target) === "analysis").map((edge) => [edge.source, edge.target]),
  );
  const edges = lineage.edges.map(({ source, target }) => ({
    source: types.get(target) === "patch" ? (analysisOf.get(source) ?? source) : source,
    target,
  }));
  return { columns: sortedByParents(columns, edges), edges };
}

/** Boxes in the order of what they were made from, so that lines cross little. */
function sortedByParents(columns: Layout["columns"], edges: Layout["edges"]): Layout["columns"] {
  const place = new Map<string, number>();
  const sorted = { ...columns };
  for (const stage of STAGES) {
    const rank = (node: LineageNode) => {
      const parents = edges.filter((edge) => edge.target === node.id).map((edge) => place.get(edge.source) ?? 0);
      return parents.length === 0 ? 0 : parents.reduce((sum, one) => sum + one, 0) / parents.length;
    };
    // Ids sort by age; within one parent the oldest comes first.
    sorted[stage] = [...columns[stage]].sort((a, b) => rank(a) - rank(b) || a.id.localeCompare(b.id));
    sorted[stage].forEach((node, at) => place.set(node.id, at));
  }
  return sorted;
}
