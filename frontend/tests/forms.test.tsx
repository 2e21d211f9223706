import { MantineProvider } from "@mantine/core";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { act, render, renderHook, screen } from "@testing-library/react";
import type { ReactNode } from "react";
import { describe, expect, it } from "vitest";
import { jobKindsQuery } from "@/api/jobs";
import type { FieldSpec, JobKind, Preset } from "@/api/types";
import { ProbabilityBars } from "@/charts/ProbabilityBars";
import { entryProblem, paramsOf } from "@/forms/fields";
import { useParams } from "@/forms/useParams";
import { roundingFacts } from "@/pages/models/rounding";
import { mixtureOf, shares, weightProblem } from "@/pages/recordings/mixture";
import { recordedSites, saeDescription, siteLabel, siteName } from "@/science/sites";

const spec = (more: Partial<FieldSpec>): FieldSpec => ({
  name: "x", type: "string", description: "", required: false, default: null, choices: [], many: false, optional: false,
  unit: "", advanced: false, place: false, minimum: null, maximum: null, exclusive_minimum: null, ...more,
});

const recipe: Preset = { title: "A recipe", values: { width: [8192], tokens: 1_000_000, warmup: 0.05 }, fvu: 0.129, minutes: 26.4, measured: "a model" };
const train: JobKind = {
  name: "train", title: "Train", description: "", cloneable: true, named: true,
  presets: { k64: recipe as never },
  fields: [
    spec({ name: "preset", choices: ["k64"], optional: true }),
    spec({ name: "width", type: "integer", many: true, default: [4096], unit: "latents" }),
    spec({ name: "tokens", type: "integer", default: 1_000_000, unit: "tokens" }),
    spec({ name: "warmup", type: "number", default: 0.02, advanced: true }),
    spec({ name: "k", type: "integer", many: true, default: [32] }),
  ],
};

function form() {
  const client = new QueryClient();
  client.setQueryData(jobKindsQuery.queryKey, [train]);
  const wrapper = ({ children }: { children: ReactNode }) => <QueryClientProvider client={client}>{children}</QueryClientProvider>;
  return renderHook(() => useParams("train"), { wrapper }).result;
}

describe("a recipe", () => {
  it("fills the form in, is sent as the form shows it, and goes when it is left", () => {
    const params = form();
    act(() => params.current.setEntries({ ...params.current.entries, k: "16", preset: "k64" }));
    expect(params.current.entries).toMatchObject({ width: "8192", warmup: "0.05", k: "16" });
    expect(params.current.preset).toEqual(recipe);
    // what the recipe sets is sent even where it equals the default: left out, the recipe would count again
    act(() => params.current.setEntries({ ...params.current.entries, width: "4096" }));
    let sent: Record<string, unknown> | null = null;
    act(() => { sent = params.current.collect(); });
    expect(sent).toEqual({ preset: "k64", width: [4096], tokens: 1_000_000, warmup: 0.05, k: [16] });
    act(() => params.current.setEntries({ ...params.current.entries, preset: "" }));
    expect(params.current.entries).toMatchObject({ width: "4096", warmup: "0.02", k: "16" });
    expect(params.current.preset).toBeNull();
    act(() => { sent = params.current.collect(); });
    expect(sent).toEqual({ k: [16] });
  });
});

describe("several choices in one field", () => {
  const site = spec({ name: "site", many: true, choices: ["resid_post", "mlp_out"], default: ["resid_post"] });

  it("are sent as a list, and each must be one of the choices", () => {
    expect(paramsOf([site], { site: "resid_post" })).toEqual({});
    expect(paramsOf([site], { site: "resid_post, mlp_out" })).toEqual({ site: ["resid_post", "mlp_out"] });
    expect(entryProblem(site, "resid_post, mlp_out")).toBeNull();
    expect(entryProblem(site, "resid_post, nowhere")).toContain("Choose");
  });
});

describe("a mixture of corpora", () => {
  it("is a corpus when it is one, and shares of tokens when there are more", () => {
    expect(mixtureOf([{ corpus: "a", weight: "x" }])).toEqual({ corpus: "a" });
    const parts = [{ corpus: "a", weight: "3" }, { corpus: "b", weight: "1" }];
    expect(mixtureOf(parts)).toEqual({ mixture: [{ corpus: "a", weight: 3 }, { corpus: "b", weight: 1 }] });
    expect(shares(parts)).toEqual([0.75, 0.25]);
  });

  it("is not sent with a missing corpus or a weight that is none", () => {
    expect(mixtureOf([{ corpus: null, weight: "1" }])).toBeNull();
    expect(mixtureOf([{ corpus: "a", weight: "1" }, { corpus: "b", weight: "0" }])).toBeNull();
    expect(weightProblem("-1")).not.toBeNull();
    expect(weightProblem("0.5")).toBeNull();
  });
});

describe("sites of a recording", () => {
  it("are every kind at every block", () => {
    const sites = recordedSites({ sites: ["resid_mid", "mlp_out"], layers: [1, 4] });
    expect(sites.map(siteName)).toEqual(["resid_mid.1", "mlp_out.1", "resid_mid.4", "mlp_out.4"]);
    expect(siteLabel(sites[1]!)).toBe("mlp_out.1: output of the MLP in block 1");
  });

  it("do not say where an SAE reads before its files were read", () => {
    const trained = { architecture: "topk", site: "resid_post", layer: 0, model_name: "tiny" };
    expect(saeDescription(trained)).toBe("topk at resid_post.0 of tiny");
    expect(saeDescription({ ...trained, architecture: "", site: "" })).toBe("of tiny");
  });
});

describe("the effect of rounding", () => {
  const rounding = { dtype: "nf4", reference: "float32", tokens: 128, kl: 0.2567, kl_max: 1.9, max_abs_logit: 6.1, top1_agreement: 0.73, bytes: { float32: 538e6, nf4: 166e6 } };

  it("is told with what it was measured against", () => {
    const facts = roundingFacts({ rounding });
    expect(facts.map((one) => one.label)).toEqual(["Weights in nf4", "KL from rounding", "Largest |Δlogit|", "Same likeliest token"]);
    expect(facts[1]!.value).toBe("0.257 nats");
    expect(facts[1]!.title).toContain("float32, on 128 tokens");
  });

  it("is not invented when the whole model did not fit, or nothing is rounded", () => {
    expect(roundingFacts({ rounding: { dtype: "nf4", reference: null, tokens: 0 } }).map((one) => one.value)).toEqual(["not measured"]);
    expect(roundingFacts({})).toEqual([]);
  });
});

describe("next-token probabilities", () => {
  it("tell a token that is cut off in full on hover", () => {
    render(<MantineProvider><ProbabilityBars rows={[{ token: 7, text: " internationalisation", base: 0.1, patched: 0.2 }]} /></MantineProvider>);
    expect(screen.getByTestId("prob-row").querySelector("td")!.title).toContain("internationalisation");
  });
});
