import { describe, expect, it } from "vitest";
import { adapterFilesProblem, canFetch, gateLimit, gateSign, gradeSign, lines, shareSentence } from "@/patches/exports";

describe("exports", () => {
  it("says whether files may be fetched, with a word beside the colour", () => {
    expect(gateSign({ state: "pending", gate: "uncertified" })[1]).toBe("being written");
    expect(gateSign({ state: "ready", gate: "uncertified" })[1]).toBe("being measured");
    expect(gateSign({ state: "ready", gate: "blocked" })[1]).toContain("blocked");
    expect(gateSign({ state: "failed", gate: "uncertified" })[1]).toBe("failed");
    expect(canFetch({ state: "ready", gate: "passed" })).toBe(true);
    expect(canFetch({ state: "ready", gate: "overridden" })).toBe(true);
    expect(canFetch({ state: "ready", gate: "blocked" })).toBe(false);
    expect(canFetch({ state: "pending", gate: "passed" })).toBe(false);
  });

  it("never calls an approximation exact", () => {
    const words = ["exact", "approximate", "not_possible"].map((grade) => gradeSign(grade)[1]);
    expect(new Set(words).size).toBe(3);
    expect(gradeSign("of tomorrow")[1]).toBe("of tomorrow");
  });
});

describe("certificates", () => {
  it("begin with the share of the effect and its interval", () => {
    const kept = shareSentence({ share: { value: 0.943, interval: [0.921, 0.957] }, measured: { notes: [] } });
    expect(kept).toMatch(/^Keeps 94\S*\s?% of the patch's effect \(95 % interval 92\S*\s?% to 95\S*\s?%\)\.$/);
    expect(shareSentence({ share: { value: 0.5, interval: null }, measured: { notes: [] } })).not.toContain("interval");
    expect(shareSentence({ share: null, measured: { notes: [] } })).toContain("could not be measured");
    expect(shareSentence({ share: null, measured: {} })).toContain("older version");
  });

  it("say on which side of a limit a value must be", () => {
    const gate = { name: "", value: 1, limit: 0.9, passed: true, formula: "", interval: null };
    expect(gateLimit({ ...gate, at_least: true })).toBe("≥ 0.9");
    expect(gateLimit({ ...gate, at_least: false })).toBe("≤ 0.9");
  });

  it("take prompts line by line", () => {
    expect(lines(" a b \n\n c")).toEqual(["a b", "c"]);
  });
});

describe("adapter files", () => {
  it("takes the two files PEFT saves and nothing else", () => {
    const both = ["adapter_model.safetensors", "adapter_config.json"];
    expect(adapterFilesProblem(both)).toBeNull();
    expect(adapterFilesProblem(["adapter_config.json"])).toContain("adapter_model.safetensors");
    expect(adapterFilesProblem([...both, "README.md"])).toContain("README.md");
  });

  it("refuses a pickle with the remedy", () => {
    expect(adapterFilesProblem(["adapter_config.json", "adapter_model.bin"])).toContain("safe_serialization");
  });
});
