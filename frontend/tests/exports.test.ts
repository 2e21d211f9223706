import { describe, expect, it } from "vitest";
import { adapterFilesProblem, canFetch, gateSign, gradeSign } from "@/patches/exports";

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
