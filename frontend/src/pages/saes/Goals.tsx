import { Badge, Group, Table, Text } from "@mantine/core";
import type { Evaluation, Goal } from "@/api/types";
import { ScrollX } from "@/components/ScrollX";
import { number, percent } from "@/science/format";

type Verdict = [sign: string, word: string, color: string];

function verdict(goal: Goal): Verdict {
  if (goal.passed === null) return ["–", "not measured", "gray"];
  return goal.passed ? ["✓", "reached", "ink"] : ["✕", "missed", "orange"];
}

/** Goals that are shares of something read better in per cent. */
function shown(goal: Goal, value: number | null): string {
  return goal.name === "FVU" ? number(value) : percent(value);
}

const MEASURED: Record<string, string> = { FVU: "fvu", "CE recovered": "ce_recovered" };

/** The bootstrap interval of what a goal is about, where there is one. */
function intervalOf({ metrics }: Evaluation, goal: Goal): [number, number] | null {
  const name = MEASURED[goal.name];
  const [low, high] = [metrics[`${name}_low`], metrics[`${name}_high`]];
  return low == null || high == null ? null : [low, high];
}

export function GoalSigns({ goals }: { goals: readonly Goal[] }) {
  return (
    <Group gap={4}>
      {goals.map((goal) => {
        const [sign, word, color] = verdict(goal);
        return (
          <Badge key={goal.name} color={color} variant={goal.passed ? "light" : "outline"} radius="sm" tt="none" leftSection={<span aria-hidden="true">{sign}</span>} title={`${goal.name}: ${shown(goal, goal.value)}, ${word}`}>
            {goal.name} <span className="visually-hidden">{word}</span>
          </Badge>
        );
      })}
    </Group>
  );
}

/** Every goal with its value, limit, verdict and formula. */
export function GoalTable({ evaluation }: { evaluation: Evaluation }) {
  return (
    <ScrollX>
      <Table data-testid="goals">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Goal</Table.Th><Table.Th ta="right">Value</Table.Th><Table.Th ta="right">Limit</Table.Th>
            <Table.Th>Verdict</Table.Th><Table.Th>Formula</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {evaluation.goals.map((goal) => {
            const [sign, word, color] = verdict(goal);
            const interval = intervalOf(evaluation, goal);
            return (
              <Table.Tr key={goal.name} data-testid="goal" data-passed={goal.passed}>
                <Table.Td fw={600}>{goal.name}</Table.Td>
                <Table.Td ta="right" style={{ whiteSpace: "nowrap" }}>
                  {shown(goal, goal.value)}
                  {interval && (
                    <Text size="xs" c="dimmed" title="95 % interval, bootstrap over documents">{shown(goal, interval[0])} to {shown(goal, interval[1])}</Text>
                  )}
                </Table.Td>
                <Table.Td ta="right" style={{ whiteSpace: "nowrap" }}>{goal.better === "higher" ? "≥" : "≤"} {shown(goal, goal.limit)}</Table.Td>
                <Table.Td><Badge color={color} variant="light" radius="sm" tt="none" miw="max-content">{sign} {word}</Badge></Table.Td>
                <Table.Td><Text size="xs" miw={220}>{goal.formula}</Text></Table.Td>
              </Table.Tr>
            );
          })}
        </Table.Tbody>
      </Table>
    </ScrollX>
  );
}
