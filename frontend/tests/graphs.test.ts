import { describe, expect, it } from "vitest";
import { EVERYTHING, shownEdges } from "@/graphs/filter";
import { fileName } from "@/graphs/files";
import { folded } from "@/graphs/fold";
import { automaticGroups } from "@/graphs/groups";
import { HitIndex } from "@/graphs/hit";
import { layout, pointOn } from "@/graphs/layout";
import { LIGHT_INK, lineLook } from "@/graphs/look";
import { pinnedCompleteness } from "@/graphs/pinned";
import { Links, onPath } from "@/graphs/reach";
import { stepped } from "@/graphs/steps";
import { svgOf } from "@/graphs/svg";
import { updated } from "@/graphs/update";
import { PLAIN, searchOf, toggleGroup, togglePin, viewFrom, viewOf, withGroup } from "@/graphs/view";
import { moduleWords, nodeWords, sameTokens, targetWords, verdictWords } from "@/graphs/words";
import { account, bigGraph, edge, graphOf, node, numbers, update } from "./graphRig";

const small = () =>
  graphOf(
    [node("target", { layer: 4, position: 2 }), node("b", { layer: 3, position: 2 }), node("a", { layer: 2, position: 2 }), node("c", { layer: 2, position: 0 }), node("e", { kind: "error", layer: 3, position: 1 })],
    [edge("b", "target", 2), edge("e", "target", -1), edge("a", "b", 1, { carry: true }), edge("c", "b", -0.5), edge("c", "a", 0.1)],
  );

describe("a graph that fills in", () => {
  it("replaces what it knows in its place and appends what is new", () => {
    const before = small();
    const after = updated(before, update({
      nodes: [node("d")], edges: [edge("b", "target", 2, { verified: true, verdict: "causal", measured: 1.9 }), edge("d", "c", 3)], accounts: [account("b", 3)], notes: ["one", "one"],
    }));
    expect(after.nodes.map(({ id }) => id)).toEqual(["target", "b", "a", "c", "e", "d"]);
    expect(after.edges.map((one) => one.from)).toEqual(["b", "e", "a", "c", "c", "d"]);
    expect(after.edges[0]!.verdict).toBe("causal");
    expect(before.edges[0]!.verdict).toBeNull();
    expect(updated(after, update({ phase: "done" })).summary).toBe(after.summary);
    expect(updated(after, update({})).edges).toBe(after.edges);
  });

  it("keeps edges of different sides apart", () => {
    const before = graphOf([node("target")], [edge("b", "target", 2, { side: "query" })]);
    expect(updated(before, update({ edges: [edge("b", "target", 1, { side: "key" })] })).edges).toHaveLength(2);
  });
});

describe("folding", () => {
  it("draws a carried direction once, spanning its layers, and never loses an edge", () => {
    const drawn = folded(small());
    const chain = drawn.nodes.find(({ id }) => id === "b")!;
    expect([chain.layer, chain.from, chain.members.map(({ id }) => id)]).toEqual([3, 2, ["b", "a"]]);
    expect(drawn.place.get("a")).toBe("b");
    const fromC = drawn.edges.find(({ from }) => from === "c")!;
    expect([fromC.to, fromC.edges.length, fromC.attribution]).toEqual(["b", 2, -0.5]);
    expect(drawn.edges.flatMap(({ edges }) => edges)).toHaveLength(4);
  });

  it("draws a closed group as one box, an open one as its nodes", () => {
    const group = { name: "pair", nodes: ["a", "e", "target", "gone"], closed: true };
    const closed = folded(small(), [group]);
    expect(closed.nodes.map(({ id }) => id).sort()).toEqual(["c", "group:pair", "target"]);
    expect(closed.nodes.find(({ group: name }) => name === "pair")!.members).toHaveLength(3);
    expect(closed.edges.find(({ to }) => to === "target")!.edges.map(({ attribution }) => attribution)).toEqual([2, -1]);
    expect(folded(small(), [{ ...group, closed: false }]).nodes).toHaveLength(4);
  });
});

describe("sliders", () => {
  const { edges } = folded(small());
  it("judge an edge against the largest into the same node", () => {
    expect(shownEdges(edges, EVERYTHING)).toHaveLength(3);
    expect(shownEdges(edges, { least: 0.6, most: 0 }).map(({ from }) => from)).toEqual(["c", "b"]);
    expect(shownEdges(edges, { least: 0, most: 1 }).map(({ from }) => from)).toEqual(["c", "b"]);
  });
});

describe("hovering", () => {
  it("finds everything on paths through a node, and nothing beside them", () => {
    const { edges } = folded(small());
    const reach = new Links(edges).reachOf("b");
    expect([[...reach.ancestors], [...reach.descendants]]).toEqual([["c"], ["target"]]);
    expect(edges.filter((one) => onPath(one, "b", reach)).map(({ from }) => from).sort()).toEqual(["b", "c"]);
  });

  it("ends on a graph with a cycle", () => {
    const { edges } = folded(graphOf([node("x"), node("y")], [edge("x", "y"), edge("y", "x")]));
    expect([...new Links(edges).reachOf("x").ancestors]).toEqual(["y"]);
  });
});

describe("the layout", () => {
  const picture = layout(folded(small()), 3, EVERYTHING);
  const at = (id: string) => picture.boxes.find((box) => box.node.id === id)!;

  it("has layers above each other, tokens beside each other, the target on top", () => {
    expect(at("target").y).toBeLessThan(at("b").y);
    expect(at("b").y).toBeLessThan(at("c").y);
    expect(at("c").x).toBeLessThan(at("e").x);
    expect(at("e").x).toBeLessThan(at("b").x);
    expect(at("b").x).toBe(at("target").x);
    expect(picture.columns.map(({ position }) => position)).toEqual([0, 1, 2]);
  });

  it("lets no two boxes touch and keeps all inside", () => {
    for (const graph of [bigGraph(90, 200, 4), bigGraph(450, 700, 6)]) {
      const { boxes, width, height } = layout(folded(graph), graph.tokens.length, EVERYTHING);
      expect(boxes.length).toBeGreaterThan(80);
      for (const [place, one] of boxes.entries()) {
        expect(one.x + one.width / 2).toBeLessThanOrEqual(width);
        expect(one.y + one.height / 2).toBeLessThanOrEqual(height);
        for (const other of boxes.slice(place + 1)) {
          if (Math.abs(one.x - other.x) < one.width && Math.abs(one.y - other.y) < one.height) throw new Error(`${one.node.id} touches ${other.node.id}`);
        }
      }
    }
  });

  it("leaves out tokens of a long prompt where nothing is", () => {
    const { columns } = layout(folded(small()), 500, EVERYTHING);
    expect(columns.map(({ position, gap }) => [position, gap])).toEqual([[0, false], [1, false], [2, false]]);
    const far = graphOf([node("target", { position: 400, layer: 4 }), node("x", { position: 3 }), node("s", { position: null, kind: "bias" })], [edge("x", "target"), edge("s", "target")]);
    expect(layout(folded(far), 500, EVERYTHING).columns.map(({ position, gap }) => [position, gap])).toEqual([[null, false], [3, true], [400, true]]);
  });

  it("hides nodes that lost their edges, but not those that must stay", () => {
    const hidden = layout(folded(small()), 3, { least: 0.9, most: 0 });
    expect(hidden.boxes.map(({ node: { id } }) => id).sort()).toEqual(["b", "c", "target"]);
    expect(layout(folded(small()), 3, { least: 0.9, most: 0 }, ["e"]).boxes).toHaveLength(4);
  });

  it("leads the arrow keys to the next node", () => {
    expect(stepped(picture, null, "ArrowDown")).toBe("target");
    expect(stepped(picture, "target", "ArrowDown")).toBe("b");
    expect(stepped(picture, "b", "ArrowLeft")).toBe("e");
    expect(stepped(picture, "e", "ArrowDown")).toBe("c");
    expect(stepped(picture, "c", "ArrowDown")).toBe("c");
    expect(stepped(picture, "c", "ArrowUp")).toBe("e");
  });
});

describe("the spatial index", () => {
  const few = bigGraph(60, 60, 4);
  const picture = layout(folded(few), few.tokens.length, EVERYTHING);
  const index = new HitIndex(picture);

  it("finds every box at its middle and an edge on its curve", () => {
    for (const box of picture.boxes) expect(index.at(box.x, box.y)?.box).toBe(box);
    let own = 0;
    for (const curve of picture.curves) {
      const hit = index.at(...pointOn(curve, 0.5));
      expect(hit).not.toBeNull();
      if (hit!.curve === curve) own += 1;
    }
    expect(own).toBeGreaterThan(picture.curves.length * 0.6); // others lie under another edge or a node
    expect(index.at(-50, -50)).toBeNull();
  });

  it("agrees with looking at every curve", () => {
    const next = numbers(5);
    for (let trial = 0; trial < 100; trial += 1) {
      const [x, y] = [next() * picture.width, next() * picture.height];
      const hit = index.at(x, y);
      if (hit?.box) continue;
      const away = (curve: (typeof picture.curves)[number]) =>
        Math.min(...Array.from({ length: 121 }, (_, at) => Math.hypot(pointOn(curve, at / 120)[0] - x, pointOn(curve, at / 120)[1] - y)));
      const nearest = Math.min(...picture.curves.map((curve) => away(curve)));
      if (hit?.curve) expect(away(hit.curve)).toBeLessThan(12);
      else expect(nearest).toBeGreaterThan(3);
    }
  });

  it("answers in far less than a frame at 5,000 edges", () => {
    const next = numbers(9);
    const many = bigGraph(1200, 5000, 8);
    const drawn = folded(many);
    const large = layout(drawn, many.tokens.length, EVERYTHING);
    const over = new HitIndex(large);
    const links = new Links(drawn.edges);
    const times: number[] = [];
    for (let trial = 0; trial < 200; trial += 1) {
      const started = performance.now();
      const hit = over.at(next() * large.width, next() * large.height);
      if (hit?.box) {
        const reach = links.reachOf(hit.box.node.id);
        large.curves.filter(({ edge: one }) => onPath(one, hit.box.node.id, reach));
      }
      times.push(performance.now() - started);
    }
    expect(times.sort((a, b) => a - b)[190]!).toBeLessThan(16);
  });
});

describe("the completeness of pinned nodes", () => {
  const graph = graphOf(
    [node("target"), node("b"), node("c"), node("e", { kind: "error" })],
    [edge("b", "target", 3), edge("e", "target", -1), edge("c", "b", 0.5)],
    { accounts: [account("target", 5), account("b", 1)] },
  );

  it("counts everything unpinned as error", () => {
    expect(pinnedCompleteness(graph, [])).toBe(0);
    // the target, influence 1, is explained to 3/5; b, influence 3/5, not at all
    expect(pinnedCompleteness(graph, ["b"])).toBeCloseTo(0.6 / 1.6, 12);
    expect(pinnedCompleteness(graph, ["b", "e"])).toBeCloseTo(0.6 / 1.6, 12);
    expect(pinnedCompleteness(graph, ["b", "c"])).toBeCloseTo((0.6 + 0.6 * 0.5) / 1.6, 12);
    expect(pinnedCompleteness(graph, ["c"])).toBe(0);
    expect(pinnedCompleteness(graphOf([node("target")], []), ["b"])).toBeNull();
  });

  it("is there within 100 ms at 500 nodes", () => {
    const big = bigGraph(500, 4000, 5);
    const pins = big.nodes.map(({ id }) => id);
    const started = performance.now();
    const found = pinnedCompleteness(big, pins)!;
    expect(performance.now() - started).toBeLessThan(100);
    expect(found).toBeGreaterThan(0);
    expect(found).toBeLessThanOrEqual(1);
  });
});

describe("groups by attribution profile", () => {
  it("hold features that contribute alike, named by their commonest word", () => {
    const graph = graphOf(
      ["target", "t2", "a1", "a2", "a3", "b1", "b2", "lone"].map((id) => node(id)),
      [
        ...["a1", "a2", "a3"].map((id) => edge(id, "target", 1)), ...["b1", "b2"].map((id) => edge(id, "t2", -2)),
        edge("lone", "target", 1), edge("lone", "t2", 1), edge("t2", "target", -5),
      ],
    );
    const groups = automaticGroups(graph, new Map([["a1", "Paris"], ["a2", "city"], ["a3", "Paris"]]));
    expect(groups.map(({ name, nodes }) => [name, [...nodes].sort()])).toEqual([["1: Paris", ["a1", "a2", "a3", "lone"]], ["group 2", ["b1", "b2"]]]);
  });
});

describe("groups of features with one child", () => {
  const through = (id: string, size: number, ...heads: number[]) =>
    edge(id, "target", size, { parts: heads.map((head) => ({ kind: "head" as const, attribution: size / heads.length, layer: 2, head })) });

  it("follow the heads that they pass, not the size of the edge", () => {
    const graph = graphOf(
      ["target", "a1", "a2", "b1", "b2", "c"].map((id) => node(id)),
      [through("a1", 5, 0), through("a2", 0.1, 0), through("b1", 5, 1), through("b2", 4, 1), through("c", 5, 3, 4)],
    );
    expect(automaticGroups(graph, new Map()).map(({ nodes }) => nodes)).toEqual([["a1", "a2"], ["b1", "b2"]]);
  });

  it("see both what they contribute to and what contributes to them, whatever the units", () => {
    const graph = graphOf(
      ["target", "a1", "a2", "b", "p", "q"].map((id) => node(id)),
      [
        through("a1", 1, 0), through("a2", 1, 0), through("b", 1, 1),
        edge("p", "a1", 100), edge("p", "a2", 100), edge("p", "b", 100), edge("q", "b", -100),
      ],
    );
    expect(automaticGroups(graph, new Map()).map(({ nodes }) => nodes)).toEqual([["a1", "a2"]]);
  });
});

describe("what a person set", () => {
  it("goes into the address and comes back; what is malformed is left out", () => {
    const view = withGroup(togglePin({ ...PLAIN, least: 0.1, most: 5, node: "a" }, ["a", "b"]), { name: "g", nodes: ["a"], closed: true });
    expect(viewFrom(searchOf(view), PLAIN)).toEqual(view);
    expect(searchOf(view, view)).toEqual({ node: "a" });
    expect(viewFrom(searchOf(PLAIN, view), view)).toEqual(PLAIN);
    expect(viewOf({ pins: ["a", 5, "a"], groups: [{ name: "" }, { name: "g", nodes: "x" }, null], least: 7, most: "many", node: 3 })).toEqual({
      ...PLAIN, pins: ["a"], groups: [{ name: "g", nodes: [], closed: false }], least: 1,
    });
    expect(viewOf("drop table")).toEqual(PLAIN);
  });

  it("a node is in one group at most, and pins come off again", () => {
    const first = withGroup(PLAIN, { name: "one", nodes: ["a", "b"], closed: false });
    expect(withGroup(first, { name: "two", nodes: ["b", "c"], closed: false }).groups.map(({ nodes }) => nodes)).toEqual([["a"], ["b", "c"]]);
    expect(toggleGroup(first, "one").groups[0]!.closed).toBe(true);
    expect(togglePin(togglePin(PLAIN, ["a", "b"]), ["a"]).pins).toEqual(["b"]);
  });
});

describe("words", () => {
  const graph = small();
  it("name targets, nodes and parts", () => {
    expect(targetWords(graph, graph.target)).toBe("the logit of token 7 after “␣c” (2)");
    expect(targetWords(graph, { ...graph.target, kind: "attention", layer: 3, head: 1, key: 0 })).toBe("attention of head 3.1 from “␣c” (2) to “a” (0)");
    expect(nodeWords(graph, node("x", { position: 9, index: 12 }))).toBe("feature 12 at resid_post.1, position 9");
    expect(moduleWords({ kind: "head", layer: 3, head: 5 })).toBe("head 3.5");
    expect(moduleWords({ kind: "direct", layer: null, head: null })).toBe("direct");
    expect(sameTokens(graph.tokens, graph.tokens.map(({ token }) => ({ token, text: "?" })))).toBe(true);
    expect(sameTokens(graph.tokens, graph.tokens.map(({ text }) => ({ text })))).toBe(true);
    expect(sameTokens(graph.tokens, graph.tokens.slice(1))).toBe(false);
    expect(sameTokens(graph.tokens, [...graph.tokens.slice(1), { token: 99, text: "d" }])).toBe(false);
    expect(verdictWords(edge("a", "b", 2, { verified: false, verdict: "not shown", measured: 0.01 }))).toBe("not shown: 0.0100 measured, 2.00 predicted");
  });
});

describe("pictures", () => {
  it("are whole where verified, dashed where not measured, struck where refuted, blue where they take away", () => {
    const graph = graphOf([node("target", { layer: 4 }), node("b", { layer: 3 }), node("c", { layer: 3 }), node("d", { layer: 3, text: "<&>" })], [
      edge("b", "target", 2, { verified: true, verdict: "causal" }), edge("c", "target", -1, { verified: false, verdict: "not shown" }), edge("d", "target", 1),
    ]);
    const picture = layout(folded(graph), 3, EVERYTHING);
    const look = (from: string) => lineLook(picture.curves.find(({ edge: one }) => one.from === from)!, LIGHT_INK);
    expect([look("b").dashes, look("b").state, look("b").color]).toEqual([[], "verified", LIGHT_INK.more]);
    expect([look("c").state, look("c").color]).toEqual(["refuted", LIGHT_INK.less]);
    expect([look("d").state, look("d").dashes.length]).toEqual(["open", 2]);
    const svg = svgOf({ picture, heads: ["a", " b", "<c>"], title: "A & B", legend: "say", pinned: new Set(["b"]), names: new Map() }, LIGHT_INK);
    const read = new DOMParser().parseFromString(svg, "image/svg+xml");
    expect(read.querySelector("parsererror")).toBeNull();
    expect(read.querySelectorAll("rect")).toHaveLength(5);
    expect(read.querySelectorAll("path")).toHaveLength(2 + 3 + 1);
    expect(read.querySelector("title")!.textContent).toBe("A & B");
  });

  it("are saved under names that every file system takes", () => {
    expect(fileName("Why “Paris”?/..", "svg")).toBe("Why-Paris-...svg");
  });
});
