import type { FeatureDetails } from "@/api/types";
import { number, percent } from "./format";

export type Example = FeatureDetails["examples"][number];

export interface ExampleGroup {
  /** 0 is the strongest, 1 … the quantile groups from strong to weak. */
  group: number;
  title: string;
  note: string;
  examples: Example[];
}

/** The strongest examples, then one group per quantile of the peaks of all windows the feature fires in. */
export function exampleGroups(details: Pick<FeatureDetails, "examples" | "quantile_examples">): ExampleGroup[] {
  const sampled = details.quantile_examples;
  const quantiles = Math.max(0, ...sampled.map((example) => example.group));
  const groups: ExampleGroup[] = [{ group: 0, title: "Strongest", note: "", examples: details.examples }];
  for (let group = 1; group <= quantiles; group += 1) {
    const examples = sampled.filter((example) => example.group === group);
    if (examples.length === 0) continue;
    const peaks = examples.map((example) => example.max);
    groups.push({
      group,
      title: `Quantile ${group} of ${quantiles}`,
      note: `a random sample of windows between the strongest ${percent((group - 1) / quantiles)} and ${percent(group / quantiles)}; peaks here ${number(Math.min(...peaks))} to ${number(Math.max(...peaks))}`,
      examples,
    });
  }
  return groups;
}
