import { describe, expect, it } from "vitest";
import { askedFields, entryProblem, fieldLabel, initialEntries, paramsOf, splitList, parseNumber } from "@/forms/fields";
import type { FieldSpec } from "@/api/types";

const spec = (more: Partial<FieldSpec>): FieldSpec => ({
  name: "x", type: "string", description: "", required: false, default: null, choices: [], many: false, optional: false,
  unit: "", advanced: false, place: false, minimum: null, maximum: null, exclusive_minimum: null, ...more,
});

const train: FieldSpec[] = [
  spec({ name: "activations", required: true, place: true }),
  spec({ name: "layer", type: "integer", required: true, minimum: 0 }),
  spec({ name: "width", type: "integer", default: 4096, minimum: 2, unit: "latents" }),
  spec({ name: "tokens", type: "integer", default: 1_000_000, minimum: 1, unit: "tokens" }),
  spec({ name: "lr", type: "number", optional: true, default: null, exclusive_minimum: 0 }),
  spec({ name: "arch", choices: ["topk", "gated"], default: "topk" }),
  spec({ name: "keep_outliers", type: "boolean", default: false, advanced: true }),
  spec({ name: "layers", type: "integer", many: true, default: [] }),
  spec({ name: "resume", type: "boolean", default: false, advanced: true }),
];

describe("forms from field specs", () => {
  it("leave out places, resume, and what the page chooses itself", () => {
    expect(askedFields(train, ["layer"]).map((field) => field.name)).toEqual([
      "width", "tokens", "lr", "arch", "keep_outliers", "layers",
    ]);
  });

  it("start from the defaults", () => {
    expect(initialEntries(train)).toMatchObject({ width: "4096", lr: "", arch: "topk", keep_outliers: false, layers: "", layer: "" });
  });

  it("send only what differs from the defaults, with the right types", () => {
    const entries = { ...initialEntries(train), layer: "15", width: "16k", lr: "1e-3", keep_outliers: true, layers: "6, 10 14", tokens: "1M" };
    expect(paramsOf(askedFields(train), entries)).toEqual({ layer: 15, width: 16384, lr: 0.001, keep_outliers: true, layers: [6, 10, 14] });
  });

  it("keep the parts of a list whole that have commas of their own", () => {
    expect(splitList("layers=[1, 2], k=32 act; note=\"a, b\" odd[")).toEqual(["layers=[1, 2]", "k=32", "act", "note=\"a, b\"", "odd["]);
    expect(splitList(" , ")).toEqual([]);
  });

  it("refuse what the server would refuse, and say why", () => {
    const field = (name: string) => train.find((one) => one.name === name)!;
    expect(entryProblem(field("layer"), "")).toBe("Needed.");
    expect(entryProblem(field("layer"), "-1")).toBe("At least 0.");
    expect(entryProblem(field("layer"), "1.5")).toBe("Needs a whole number.");
    expect(entryProblem(field("layer"), "abc")).toContain("no number");
    expect(entryProblem(field("lr"), "0")).toBe("Above 0.");
    expect(entryProblem(field("lr"), "")).toBeNull();
    expect(entryProblem(field("arch"), "lstm")).toContain("topk");
    expect(entryProblem(field("layers"), "1, x")).toContain("“x”");
    expect(entryProblem(spec({ type: "number", maximum: 0.5 }), "0.6")).toBe("At most 0.5.");
  });

  it("read numbers as people type them", () => {
    expect(parseNumber("1 000 000")).toBe(1_000_000);
    expect(parseNumber("1,000,000")).toBe(1_000_000);
    expect(parseNumber("2.5M")).toBe(2_500_000);
    expect(parseNumber("16k", "latents")).toBe(16_384);
    expect(parseNumber("16k", "tokens")).toBe(16_000);
    expect(parseNumber("1e-3")).toBe(0.001);
    expect(parseNumber(".5")).toBe(0.5);
    for (const none of ["", "k", "1.2.3", "NaN", "Infinity", "1e999", "0x10", "0,5"]) expect(parseNumber(none)).toBeNull();
  });

  it("label fields readably", () => {
    expect(fieldLabel("batch_size")).toBe("Batch size");
    expect(fieldLabel("buffer_mb")).toBe("Buffer (MB)");
    expect(fieldLabel("k")).toBe("k");
  });
});
