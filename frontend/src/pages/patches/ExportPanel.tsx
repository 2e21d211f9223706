import { Badge, Button, Group, NumberInput, Stack, Table, Text, Textarea } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { exportsQuery, startExport, targetsQuery } from "@/api/exports";
import type { Patch, Verdict } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { useRights } from "@/app/project";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ScrollX } from "@/components/ScrollX";
import { gradeSign, lines } from "@/patches/exports";
import { ExportCard } from "./ExportCard";

/** Where a patch can go, and what has been made of it so far. */
export function ExportPanel({ patch }: { patch: Patch }) {
  const { edit } = useRights(patch.project);
  const targets = useQuery(targetsQuery(patch.id, patch.version));
  const made = useQuery({ ...exportsQuery(patch.id), refetchInterval: ({ state }) => (state.data?.some(busy) ? 3000 : false) });
  const [rank, setRank] = useState(8);
  const [steps, setSteps] = useState(120);
  const [seconds, setSeconds] = useState(1800);
  const [prompts, setPrompts] = useState("");
  const invalidate = useInvalidate();
  const refresh = () => invalidate("exports", "jobs", "lineage");
  const start = useMutation({
    mutationFn: (verdict: Verdict) =>
      startExport(patch.id, verdict.target, {
        triggers: lines(prompts),
        ...(verdict.grade === "approximate" ? { rank, fit_steps: steps, fit_seconds: seconds } : {}),
      }),
    onSettled: refresh,
  });
  const fitting = targets.data?.some((verdict) => verdict.grade === "approximate");

  return (
    <Stack gap="md" data-testid="export-panel">
      <Text size="sm">
        Version {patch.version} as files for other programs. Every export is reloaded in a process of its own and measured
        against the live patch; its files can be fetched once it is within its limits.
      </Text>
      <Loaded query={targets} what="where the patch can go">
        {(rows) => (
          <ScrollX>
            <Table>
              <Table.Thead>
                <Table.Tr><Table.Th>Target</Table.Th><Table.Th>Faithful</Table.Th><Table.Th>Why</Table.Th><Table.Th aria-label="Export" /></Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {rows.map((verdict) => {
                  const [sign, word, color] = gradeSign(verdict.grade);
                  return (
                    <Table.Tr key={verdict.target} data-testid="target" data-target={verdict.target} data-grade={verdict.grade}>
                      <Table.Td fw={600} miw={140}>
                        {verdict.title}
                        {verdict.loaders.length > 0 && <Text size="xs" c="dimmed">{verdict.loaders.join(", ")}</Text>}
                      </Table.Td>
                      <Table.Td><Badge color={color} variant="light" radius="sm" tt="none" miw="max-content">{sign} {word}</Badge></Table.Td>
                      <Table.Td miw={220}>
                        <Text size="xs">{verdict.reason}</Text>
                        {verdict.hint !== "" && <Text size="xs" c="dimmed">{verdict.hint}</Text>}
                      </Table.Td>
                      <Table.Td>
                        {edit && verdict.grade !== "not_possible" && (
                          <Button
                            size="compact-sm"
                            onClick={() => start.mutate(verdict)}
                            loading={start.isPending && start.variables.target === verdict.target}
                            aria-label={`Export as ${verdict.title}`}
                          >
                            Export
                          </Button>
                        )}
                      </Table.Td>
                    </Table.Tr>
                  );
                })}
              </Table.Tbody>
            </Table>
          </ScrollX>
        )}
      </Loaded>
      {edit && fitting && (
        <Group gap="sm" align="flex-end">
          <NumberInput label="Rank of a fit" min={1} max={256} w={120} value={rank} onChange={(value) => setRank(Number(value) || 8)} />
          <NumberInput label="Steps of a fit" min={0} w={120} value={steps} onChange={(value) => setSteps(value === "" ? 120 : Number(value))} />
          <NumberInput label="Stop a fit after" suffix=" s" min={10} w={140} value={seconds} onChange={(value) => setSeconds(Number(value) || 1800)} />
          <Text size="xs" c="dimmed" maw={360}>Approximate targets are fitted to the live patch on the training text of its recording, and measured on the held-out text.</Text>
        </Group>
      )}
      {edit && (
        <Textarea
          label="Prompts where the patch is meant to act"
          description="One per line, if you like; they are measured beside the held-out text. Without any, the text where it acts comes from the recording."
          minRows={2}
          autosize
          value={prompts}
          onChange={(event) => setPrompts(event.currentTarget.value)}
        />
      )}
      <ErrorNote error={start.error} doing="Exporting" />
      <Loaded query={made} what="the exports" rows={2}>
        {(rows) => rows.length === 0 ? <Text size="sm" c="dimmed">Nothing has been exported yet.</Text> : (
          <Stack gap="sm">{rows.map((one) => <ExportCard key={one.id} made={one} titles={targets.data ?? []} onChanged={() => void refresh()} />)}</Stack>
        )}
      </Loaded>
    </Stack>
  );
}

function busy(one: { state: string; gate: string; certificate: { state: string } | null }): boolean {
  return one.state === "pending" || one.certificate?.state === "pending";
}
