/** Models whose weights are rounded to 8 or 4 bits, and what that does to them. */

import type { Model, ModelFacts } from "@/api/types";
import type { Fact } from "@/components/Facts";
import { bytes, integer, number, percent } from "@/science/format";

export function rounded(dtype: Model["dtype"]): boolean {
  return dtype === "int8" || dtype === "nf4";
}

/** The measured effect of rounding, as facts; none for a model that is whole. */
export function roundingFacts(facts: ModelFacts): Fact[] {
  const found = facts.rounding;
  if (!found) return [];
  const sizes: Fact[] = found.bytes
    ? [{ label: `Weights in ${found.dtype}`, value: `${bytes(found.bytes[found.dtype])} of ${bytes(found.bytes.float32)}`, title: "of the weights alone, rounded and in float32" }]
    : [];
  if (!found.reference) {
    return [...sizes, { label: "Effect of rounding", value: "not measured", title: "the whole model did not fit in memory, so there was nothing to compare with" }];
  }
  const on = `against the whole model in ${found.reference}, on ${integer(found.tokens)} tokens of a fixed text`;
  return [
    ...sizes,
    { label: "KL from rounding", value: `${number(found.kl)} nats`, title: `mean KL(whole ‖ rounded), ${on}; the largest is ${number(found.kl_max)}` },
    { label: "Largest |Δlogit|", value: number(found.max_abs_logit), title: on },
    { label: "Same likeliest token", value: percent(found.top1_agreement), title: on },
  ];
}
