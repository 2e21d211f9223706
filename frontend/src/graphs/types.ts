/** Names of the shapes of a provenance graph. */

import type { components } from "@/live/schema";

type Schemas = components["schemas"];

export type Graph = Schemas["Graph"];
export type GraphUpdate = Schemas["GraphUpdate"];
export type GraphNode = Schemas["Node"];
export type GraphTarget = Schemas["GraphTarget"];
export type GraphSae = Schemas["GraphSae"];
export type Edge = Schemas["Edge"];
export type Part = Schemas["Part"];
export type Component = Schemas["Component"];
export type Account = Schemas["Account"];
export type Summary = Schemas["Summary"];
export type Attended = Schemas["Attended"];
export type Contributor = Schemas["Contributor"];

/** What tells an edge from others. */
export const edgeKey = (edge: Pick<Edge, "from" | "to" | "side">): string => `${edge.from}\n${edge.to}\n${edge.side}`;
