import { describe, expect, it } from "vitest";

import { pinnedCompleteness, type PinnedGraph } from "@/graphs/pinned";
import cases from "@/graphs/pinned.cases.json";

describe("the completeness of a pinned subgraph", () => {
  it.each(cases.map((one, number) => ({ number, ...one })))("is what Python gives: case $number", ({ graph, pinned, completeness }) => {
    const found = pinnedCompleteness(graph as PinnedGraph, pinned);
    if (completeness === null) expect(found).toBeNull();
    else expect(Math.abs(found! - completeness)).toBeLessThan(1e-9);
  });
});
