import { Badge, Group, Stack, Text, Title } from "@mantine/core";
import type { Sae } from "@/api/types";
import { Facts } from "@/components/Facts";
import { integer, number } from "@/science/format";

/** `summary.smoke_test` of an imported SAE. */
interface SmokeTestResult {
  tokens: number;
  l0: number;
  fvu: number | null;
  nmse0: number | null;
  not_finite: number;
  passed: boolean;
  message: string;
  left_out?: number;
  filter_rule?: string;
}

/** How an imported SAE did on real activations: what to look at before using it. */
export function SmokeTest({ sae }: { sae: Sae }) {
  if (!("smoke_test" in sae.summary)) return null;
  const test = sae.summary.smoke_test as SmokeTestResult | null;
  if (test === null) return null;
  return (
    <Stack gap="xs" className="panel" data-testid="smoke-test" data-passed={test.passed}>
      <Group justify="space-between">
        <Title order={2}>Smoke test</Title>
        <Badge variant="light" color={test.passed ? "blue" : "orange"}>{test.passed ? "it fits" : "look closer"}</Badge>
      </Group>
      <Text size="sm">{test.message}</Text>
      <Facts
        facts={[
          { label: "Tokens", value: integer(test.tokens), title: `without ${test.filter_rule ?? "attention sinks"}` },
          { label: "L0", value: number(test.l0), title: "active latents per token" },
          { label: "FVU", value: number(test.fvu), title: "fraction of variance unexplained" },
          { label: "Error share of the norm", value: number(test.nmse0), title: "squared error over squared norm" },
          { label: "Not finite", value: integer(test.not_finite) },
        ]}
      />
    </Stack>
  );
}
