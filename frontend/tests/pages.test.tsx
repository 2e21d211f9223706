import { MantineProvider } from "@mantine/core";
import { fireEvent, render, screen, within } from "@testing-library/react";
import { useState } from "react";
import { describe, expect, it } from "vitest";
import { ApiError, errorOf } from "@/api/errors";
import type { Edit, FeatureDetail, FieldSpec, Job, JobEvent, Lineage, LineageNode, Sae } from "@/api/types";
import * as search from "@/app/search";
import { ErrorNote } from "@/components/ErrorNote";
import { progressSentence } from "@/components/JobProgress";
import { entryProblem, initialEntries, type Entries } from "@/forms/fields";
import { ParamsForm } from "@/forms/ParamsForm";
import { layoutOf } from "@/pages/home/lineage";
import { curvesOf } from "@/pages/jobs/curves";
import { AddedAnalyses } from "@/pages/features/AddedAnalyses";
import { densityShare } from "@/pages/features/FeatureTable";
import { percentile } from "@/pages/lab/Readings";
import { Assumed } from "@/pages/saes/Assumed";
import { editSentence, receiptSentence } from "@/patches/words";
import { runningFacts } from "@/science/running";
import { ALL_KINDS } from "./kindsRig";

const plain = (text: string) => text.replaceAll("\u202f", " ");

describe("curves of a job", () => {
  const point = (seq: number, done: number, fvu: number, phase = "training"): JobEvent => ({
    seq, at: "", attempt: 1, kind: "metrics", level: "info", message: "", data: { phase, done, metrics: { fvu } } as never,
  });

  it("are one per metric, over the work done", () => {
    const curves = curvesOf([point(1, 10, 0.9), { ...point(2, 0, 0), kind: "log" }, point(3, 20, 0.5)]);
    expect(curves).toEqual([{ name: "fvu", phase: "training", series: { x: [10, 20], y: [0.9, 0.5] } }]);
  });

  it("go on from the checkpoint when an attempt is resumed, without a line back", () => {
    const curves = curvesOf([point(1, 10, 0.9), point(2, 20, 0.5), point(3, 30, 0.4), point(4, 15, 0.6), point(5, 25, 0.45)]);
    expect(curves[0]!.series).toEqual({ x: [10, 15, 25], y: [0.9, 0.6, 0.45] });
  });
});

describe("the lineage", () => {
  const node = (id: string, type: LineageNode["type"]): LineageNode => ({ id, type, name: id, state: "ready", numbers: {}, job: null });
  const lineage: Lineage = {
    project: "p",
    nodes: [
      node("m1", "model"), node("c1", "corpus"), node("r1", "recording"), node("r2", "recording"),
      node("s2", "sae"), node("s1", "sae"), node("a1", "analysis"), node("e1", "evaluation"), node("p1", "patch"), node("p2", "patch"),
      node("l1", "adapter"), node("x1", "export"),
    ],
    edges: [
      { source: "m1", target: "r1" }, { source: "c1", target: "r1" }, { source: "m1", target: "r2" },
      { source: "r2", target: "s2" }, { source: "r1", target: "s1" },
      { source: "s1", target: "a1" }, { source: "s1", target: "e1" },
      { source: "s1", target: "p1" }, { source: "s2", target: "p2" },
      { source: "m1", target: "l1" }, { source: "l1", target: "p2" }, { source: "p1", target: "x1" },
    ],
  };

  it("puts every box into its column, beside what it was made from", () => {
    const { columns } = layoutOf(lineage);
    const ids = Object.fromEntries(Object.entries(columns).map(([stage, nodes]) => [stage, nodes.map((one) => one.id)]));
    expect(ids.models!.sort()).toEqual(["c1", "m1"]);
    expect(ids.saes).toEqual(["s1", "l1", "s2"]);
    expect(ids.exports).toEqual(["x1"]);
    expect(ids.measured).toEqual(["a1", "e1"]);
  });

  it("leads to a patch from the features it is made of, or from the SAE when they were not analysed", () => {
    const { edges } = layoutOf(lineage);
    expect(edges).toContainEqual({ source: "a1", target: "p1" });
    expect(edges).not.toContainEqual({ source: "s1", target: "p1" });
    expect(edges).toContainEqual({ source: "s2", target: "p2" });
  });
});

describe("sentences", () => {
  const edit: Edit = {
    kind: "scale", site: "resid_post.15", feature: { sae: "s", index: 42 }, sae: "", adapter: "", modules: [], strength: 3, unit: "raw", unit_value: 1,
    positions: { mode: "all", start: 0, indices: [], include_sinks: false }, enabled: true,
  };
  it("say what an edit does", () => {
    expect(editSentence(edit, ALL_KINDS)).toBe("scale feature 42 at resid_post.15 by 3.00");
    expect(editSentence({ ...edit, kind: "add", unit: "p999", strength: -1.5 }, ALL_KINDS)).toBe("add −1.50 × p99.9 of feature 42 at resid_post.15");
    expect(editSentence({ ...edit, kind: "ablate", enabled: false }, ALL_KINDS)).toBe("ablate feature 42 at resid_post.15 (muted)");
  });

  it("name an edit of a kind that the server does not have", () => {
    expect(editSentence({ ...edit, kind: "gone" as Edit["kind"] }, ALL_KINDS)).toBe("gone feature 42 at resid_post.15");
  });

  const receipt = { plan: "p", baseline: "b", reused: "computed", first_layer: 16, first_position: 4, path: "fast" };
  it("say what was done, and never take nothing for something", () => {
    const acted = { ...receipt, edits: [{ edit: 0, noop: false, positions: [4, 5], max_delta: 12.345 }, { edit: 1, noop: false, positions: [5, 9], max_delta: 3 }] };
    expect(receiptSentence(acted)).toBe("Acted at 3 positions, max |Δ| 12.3, computed from block 16, position 4.");
    expect(receiptSentence({ ...receipt, edits: [] })).toContain("Nothing changed");
    expect(receiptSentence({ ...receipt, edits: [{ edit: 0, noop: true, positions: [], max_delta: 0 }] })).toContain("no-op");
    expect(receiptSentence({ ...receipt, edits: [{ edit: 0, noop: false, positions: [], max_delta: 0 }] })).toContain("no edited feature fires");
  });

  it("say how a model is run", () => {
    expect(runningFacts(null)).toEqual([]);
    const everywhere = { kind: "resid_post", blocks: [0, 1, 2, 4], reason: "" };
    const fast = runningFacts({ path: "fast", reason: "", from_start: false, sites: [everywhere] });
    expect(fast.map(({ label, value }) => [label, value])).toEqual([["Run by", "the fast path"], ["Sites", "all kinds"]]);
    const nowhere = { kind: "resid_mid", blocks: [], reason: "attention and MLP run in parallel" };
    const partly = { kind: "attn_z", blocks: [0, 1, 3], reason: "block 2 has no attention" };
    const other = runningFacts({ path: "general", reason: "this type has no declaration", from_start: true, sites: [everywhere, nowhere, partly] });
    expect(other.map(({ value }) => value)).toEqual(["the model’s own blocks", "from the first token", "1 of 3 kinds at every block"]);
    expect(other[0]!.title).toContain("called one by one (this type has no declaration)");
    expect(other[2]!.title).toContain("resid_mid (residual stream inside a block): nowhere; attention and MLP run in parallel");
    expect(other[2]!.title).toContain("only in 0–1, 3; block 2 has no attention");
  });

  it("say what a job is doing", () => {
    const job = {
      state: "running", phase: "training", done: 500_000, total: 1_000_000, unit: "tokens", rate: 25_000, eta_seconds: 20, queue_position: 0,
    } as Job;
    expect(plain(progressSentence(job))).toBe("training · 500k of 1M tokens · 25k tokens/s · 20 s left");
    expect(plain(progressSentence({ ...job, done: 1_000_000, eta_seconds: 0 }))).toBe("training · 1M of 1M tokens · 25k tokens/s");
    expect(plain(progressSentence({ ...job, phase: "distilling", done: 40, total: 100, unit: "%" }))).toBe("distilling · 20 s left");
    expect(progressSentence({ ...job, state: "queued", queue_position: 3 })).toContain("number 3 in the queue");
    const told = plain(progressSentence({ ...job, state: "queued", queue_position: 3, starts_in_seconds: 120, lasts_seconds: 60 }));
    expect(told).toContain("starts in about 2 min");
    expect(told).toContain("takes about 1 min");
    expect(progressSentence({ ...job, state: "waiting", lasts_seconds: null })).toBe("waits for the step before it");
    expect(progressSentence({ ...job, state: "succeeded" })).toBe("");
  });
});

describe("small numbers", () => {
  it("spread densities over six decades", () => {
    expect(densityShare(1)).toBe(1);
    expect(densityShare(0.001)).toBeCloseTo(0.5);
    expect(densityShare(0)).toBe(0);
    expect(densityShare(1e-9)).toBeGreaterThan(0);
  });
  it("find percentiles of few samples", () => {
    expect(percentile([], 0.95)).toBeNull();
    expect(percentile([5], 0.95)).toBe(5);
    expect(percentile([30, 10, 20], 0.5)).toBe(20);
    expect(percentile(Array.from({ length: 100 }, (_, i) => i + 1), 0.95)).toBe(95);
  });
});

describe("addresses", () => {
  it("keep what is sensible and drop what is not", () => {
    expect(search.features({ search: "war", ordering: "-density", starred: "true", min: "0.5", max: "abc", prompt: 7 })).toEqual({
      search: "war", ordering: "-density", starred: true, labelled: undefined, dead: undefined, min: 0.5, max: undefined, prompt: "7",
    });
    expect(search.features({ ordering: "drop table" }).ordering).toBeUndefined();
  });
  it("never lead out of the application after signing in", () => {
    expect(search.login({ next: "/projects/1" }).next).toBe("/projects/1");
    for (const next of ["//evil.example", "https://evil.example", "javascript:alert(1)", 5]) expect(search.login({ next }).next).toBeUndefined();
  });
});

describe("errors", () => {
  it("are read from every shape a server answers with", () => {
    const full = errorOf(422, { type: "client_error", errors: [{ code: "k_above_width", detail: "Too many.", attr: "params", hint: "Lower k." }] });
    expect([full.code, full.message, full.hint, full.about("params")]).toEqual(["k_above_width", "Too many.", "Lower k.", "Too many."]);
    expect(errorOf(502, "<html>").code).toBe("server_error");
    expect(errorOf(400, { errors: [] }).message).toContain("400");
    expect(errorOf(400, null)).toBeInstanceOf(ApiError);
  });
  it("say what failed, why, and what to do; fields shown beside their input are left out", () => {
    const error = new ApiError(400, [
      { code: "name_taken", detail: "The name is taken.", attr: "name", hint: "" },
      { code: "bad_site", detail: "No such site.", attr: null, hint: "Use resid_post." },
    ]);
    render(<MantineProvider><ErrorNote error={error} doing="Saving" shownElsewhere={["name"]} /></MantineProvider>);
    const note = screen.getByRole("alert");
    expect(note.textContent).toContain("Saving failed");
    expect(note.textContent).toContain("No such site. Use resid_post.");
    expect(note.textContent).not.toContain("taken");
  });
});

describe("a generated form", () => {
  const spec = (more: Partial<FieldSpec>): FieldSpec => ({
    name: "x", type: "string", description: "", required: false, default: null, choices: [], many: false, optional: false,
    unit: "", advanced: false, place: false, minimum: null, maximum: null, exclusive_minimum: null, ...more,
  });
  const specs = [
    spec({ name: "tokens", type: "integer", default: 1000, minimum: 1, unit: "tokens", description: "How many tokens." }),
    spec({ name: "keep_outliers", type: "boolean", default: false }),
    spec({ name: "seed", type: "integer", default: 0, minimum: 0, advanced: true }),
  ];
  function Form({ tried }: { tried: boolean }) {
    const [entries, setEntries] = useState<Entries>(initialEntries(specs));
    return (
      <MantineProvider>
        <ParamsForm specs={specs} entries={entries} onChange={setEntries} tried={tried} />
        <output>{JSON.stringify(entries)}</output>
      </MantineProvider>
    );
  }

  it("labels its inputs, shows how short forms are read, and reports what is typed", () => {
    render(<Form tried={false} />);
    fireEvent.change(screen.getByLabelText("Tokens"), { target: { value: "2M" } });
    fireEvent.click(screen.getByLabelText("Keep outliers"));
    expect(screen.getByText(/^= 2.000.000$/)).toBeTruthy();
    expect(screen.getByRole("status").textContent).toContain('"tokens":"2M","keep_outliers":true');
    expect(screen.getByText("More settings (1)")).toBeTruthy();
  });

  it("says what is wrong once somebody tried to send it", () => {
    const { rerender } = render(<Form tried={false} />);
    fireEvent.change(screen.getByLabelText("Tokens"), { target: { value: "0" } });
    expect(screen.queryByText("At least 1.")).toBeNull();
    rerender(<Form tried />);
    expect(screen.getByText("At least 1.")).toBeTruthy();
    expect(entryProblem(specs[0]!, "0")).toBe("At least 1.");
  });
});

describe("what analyses of other packages found", () => {
  const analysis = (name: string, more: object) => ({ name, title: name, description: "", package: "p 1", columns: [], error: "", ...more });
  const detail = {
    analyses: [
      analysis("entropy", {}),
      analysis("runs", { columns: ["document", "tokens"] }),
      analysis("empty", { columns: ["document"] }),
      analysis("broken", { error: "The analysis failed." }),
    ],
    details: { more: { entropy: 1.25, runs: [[12, 4], [7, null]], empty: [], broken: null } },
  } as unknown as FeatureDetail;

  it("is a titled value or a titled table, or why there is none", () => {
    render(<MantineProvider><AddedAnalyses detail={detail} /></MantineProvider>);
    expect(screen.getByTestId("analysis-entropy").textContent).toBe("entropy1.25");
    const cells = within(screen.getByRole("table", { name: "runs" })).getAllByRole("cell").map((cell) => cell.textContent);
    expect(cells).toEqual(["12", "4", "7", "–"]);
    expect(screen.getByTestId("analysis-empty").textContent).toBe("emptynone");
    expect(screen.getByTestId("analysis-broken").textContent).toContain("The analysis failed.");
  });
});

describe("what was assumed at an import", () => {
  const sae = (summary: object) => ({ summary }) as unknown as Sae;

  it("is said on the SAE's page, sentence by sentence", () => {
    render(<MantineProvider><Assumed sae={sae({ assumed: ["k: 3 in cfg.json, read as 12", "warp: 3, taken not to matter"] })} /></MantineProvider>);
    expect(screen.getByText("k: 3 in cfg.json, read as 12")).toBeTruthy();
    expect(screen.getAllByRole("listitem")).toHaveLength(2);
  });

  it("is silent where nothing was", () => {
    for (const summary of [{}, { assumed: [] }]) {
      render(<MantineProvider><Assumed sae={sae(summary)} /></MantineProvider>);
    }
    expect(screen.queryByTestId("assumed")).toBeNull();
  });
});
