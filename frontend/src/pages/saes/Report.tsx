import { Anchor, Group, Stack, Table, Text, Title } from "@mantine/core";
import { reportUrl } from "@/api/saes";
import type { Evaluation, EvaluationDetails } from "@/api/types";
import { Histogram } from "@/charts/Histogram";
import { ScrollX } from "@/components/ScrollX";
import { edgedBins } from "@/science/histogram";
import { ago, fixed, integer, number, percent } from "@/science/format";
import { Files } from "./Files";
import { GoalTable } from "./Goals";

/** A density given as a power of ten, told apart far below where percentages stop. */
const power = (exponent: number) => (exponent < -5 ? number(10 ** exponent) : percent(10 ** exponent));

const PROBE_SIZES = [1, 5, 16];

/** An evaluation: goals, both token filters, loss, densities. */
export function Report({ evaluation }: { evaluation: Evaluation }) {
  const details = evaluation.details as EvaluationDetails;
  const bins = edgedBins(details.density_counts ?? [], details.density_edges ?? []);
  return (
    <Stack gap="md" className="panel" data-testid="report">
      <Group justify="space-between">
        <Title order={2}>Evaluation</Title>
        <Group gap="md">
          <Text size="xs" c="dimmed">{ago(evaluation.created_at)}, on {integer(evaluation.metrics.documents)} held-out documents</Text>
          {evaluation.artifact && <Anchor href={reportUrl(evaluation.id)} target="_blank" rel="noreferrer" size="sm">Report as a page</Anchor>}
        </Group>
      </Group>
      <GoalTable evaluation={evaluation} />
      {details.honesty && <Text size="sm" data-testid="honesty">{details.honesty}</Text>}
      <Metrics evaluation={evaluation} rule={details.filter_rule} />
      {bins.length > 0 && (
        <Histogram title="How often features fire" bins={bins} axis="share of held-out tokens a feature fires on (log scale); features that never fire are left out" counted="features" show={power} height={140} />
      )}
      {evaluation.artifact && <Files artifact={evaluation.artifact} title="Files of the evaluation" />}
    </Stack>
  );
}

function Metrics({ evaluation, rule }: { evaluation: Evaluation; rule: string | undefined }) {
  const m = evaluation.metrics;
  const ordinary: [string, string, string][] = [
    ["FVU", number(m.fvu), "fraction of variance unexplained: Σ‖x−x̂‖² / Σ‖x−μ‖²"],
    ["FVU per token", number(m.per_token_fvu), "mean over tokens of ‖x−x̂‖² / ‖x−μ‖²"],
    ["NMSE against zero", number(m.nmse0), "Σ‖x−x̂‖² / Σ‖x‖²"],
    ["Cosine", fixed(m.cosine, 4), "mean cosine of x and x̂"],
    ["Norm ratio", fixed(m.norm_ratio, 4), "mean ‖x̂‖ / ‖x‖; below 1 is shrinkage"],
    ["Relative bias", fixed(m.relative_bias, 4), "Σ‖x̂‖² / Σ⟨x̂, x⟩; 1 is unbiased"],
    ["L0", number(m.l0), "active latents per token"],
    ["Dead, held out", percent(m.dead_held_out), "latents that fire on no held-out token"],
  ];
  const loss: [string, string, string][] = [
    ["CE, model", fixed(m.ce_model, 4), "cross-entropy of the next token, nats"],
    ["CE, with SAE", fixed(m.ce_sae, 4), "with the SAE’s reconstruction spliced in"],
    ["CE, block zeroed", fixed(m.ce_zero, 4), "with zeros spliced in"],
    ["CE recovered", percent(m.ce_recovered), "(CE zeroed − CE with SAE) / (CE zeroed − CE model)"],
    ["KL, with SAE", fixed(m.kl_sae, 4), "KL(model ‖ with SAE), nats"],
    ["KL recovered", percent(m.kl_recovered), "1 − KL with SAE / KL zeroed"],
  ];
  if (m.ce_sae_all_tokens != null) {
    loss.push(["CE, sinks replaced too", fixed(m.ce_sae_all_tokens, 4), "with every token’s reconstruction spliced in, attention sinks included: what happens when the filter is forgotten"]);
  }
  const probing = PROBE_SIZES.filter((k) => m[`probe_auroc_${k}`] != null).map(
    (k): [string, string, string] => [`AUROC, ${k} ${k === 1 ? "latent" : "latents"}`, fixed(m[`probe_auroc_${k}`], 3), "mean over properties of the text, on documents the probe was not fitted on"],
  );
  probing.push(["AUROC, all dimensions", fixed(m.probe_auroc_dense, 3), "a probe on the raw activations: the ceiling"]);
  return (
    <Stack gap="xs">
      <Title order={3}>Two token filters</Title>
      <ScrollX>
        <Table withRowBorders={false} w="auto">
          <Table.Tbody>
            <Table.Tr>
              <Table.Td><strong>Ordinary tokens</strong>: FVU {number(m.fvu)} on {integer(m.tokens)} tokens</Table.Td>
              <Table.Td><Text size="xs" c="dimmed">without {rule ?? "special tokens and attention sinks"}</Text></Table.Td>
            </Table.Tr>
            <Table.Tr>
              <Table.Td><strong>Every token</strong>: FVU {number(m.fvu_all_tokens)} on {integer(m.all_tokens)} tokens</Table.Td>
              <Table.Td><Text size="xs" c="dimmed">nothing left out; a few sinks with huge norms dominate this number</Text></Table.Td>
            </Table.Tr>
          </Table.Tbody>
        </Table>
      </ScrollX>
      <Group align="flex-start" gap="xl">
        <Numbers title="Reconstruction, ordinary tokens" rows={ordinary} />
        {m.ce_model != null && <Numbers title="Loss with the SAE spliced in" rows={loss} />}
        {m.probe_auroc_dense != null && <Numbers title="k-sparse probing" rows={probing} />}
      </Group>
    </Stack>
  );
}

function Numbers({ title, rows }: { title: string; rows: [string, string, string][] }) {
  return (
    <div>
      <Title order={3}>{title}</Title>
      <Table withRowBorders={false} verticalSpacing={2} w="auto">
        <Table.Tbody>
          {rows.map(([name, value, meaning]) => (
            <Table.Tr key={name} title={meaning}>
              <Table.Td pl={0}>{name}</Table.Td>
              <Table.Td ta="right" fw={500}>{value}</Table.Td>
              <Table.Td><Text size="xs" c="dimmed" visibleFrom="md">{meaning}</Text></Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </div>
  );
}
