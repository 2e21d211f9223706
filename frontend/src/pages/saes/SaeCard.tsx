import { Group, Stack, Text } from "@mantine/core";
import type { Sae } from "@/api/types";
import { Facts } from "@/components/Facts";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";
import { ago, integer, number, percent } from "@/science/format";
import { saeDescription } from "@/science/sites";
import { GoalSigns } from "./Goals";

export function SaeCard({ sae }: { sae: Sae }) {
  const job = useJobAbout(sae.project, sae.id);
  const params = { project: sae.project, sae: sae.id };
  const metrics = sae.evaluation?.metrics;
  return (
    <section className="panel" aria-label={sae.name} data-testid="sae-card" data-sae={sae.id} data-state={sae.state}>
      <Stack gap="sm">
        <Group justify="space-between" align="flex-start">
          <div>
            <TextLink to="/projects/$project/saes/$sae" params={params} fw={600} fz="md">{sae.name}</TextLink>
            <Text size="xs" c="dimmed">{saeDescription(sae)} · {ago(sae.created_at)}</Text>
          </div>
          {sae.evaluation ? <GoalSigns goals={sae.evaluation.goals} /> : <StateBadge state={sae.state} />}
        </Group>
        <Facts
          facts={[
            { label: "Width", value: integer(sae.width || null) },
            { label: "k", value: integer(sae.k) },
            { label: "FVU, held out", value: number(metrics?.fvu) },
            { label: "L0", value: number(metrics?.l0) },
            { label: "CE recovered", value: percent(metrics?.ce_recovered) },
            { label: "Dead in training", value: percent(metrics?.dead_in_training) },
            { label: "Features analysed", value: integer(sae.analysis?.n_features) },
          ]}
        />
        <JobOf job={job} />
        <Group gap="xs" justify="flex-end">
          <LinkButton to="/projects/$project/saes/$sae" params={params} variant="default">Report</LinkButton>
          {sae.analysis && <LinkButton to="/projects/$project/saes/$sae/features" params={params} variant="light" data-testid="browse-features">Features</LinkButton>}
        </Group>
      </Stack>
    </section>
  );
}
