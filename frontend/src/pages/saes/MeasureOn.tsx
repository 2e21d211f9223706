import { Button, Group, Select, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { recordingsQuery } from "@/api/registry";
import { evaluateSae } from "@/api/saes";
import type { Sae } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";

/** An imported SAE has no recording: choose the one it is measured and described on from now on. */
export function MeasureOn({ sae }: { sae: Sae }) {
  const recordings = useQuery(recordingsQuery(sae.project));
  const [chosen, setChosen] = useState<string | null>(null);
  const invalidate = useInvalidate();
  const fitting = (recordings.data ?? []).filter(
    (one) => one.state === "ready" && one.model === sae.model && one.sites.includes(sae.site) && one.layers.includes(sae.layer),
  );
  const recording = fitting.find((one) => one.id === chosen) ?? fitting[0];
  const start = useMutation({
    mutationFn: () => evaluateSae(sae.id, {}, recording?.id),
    onSettled: () => invalidate("saes", "jobs", "lineage"),
  });
  return (
    <div className="panel" data-testid="measure-on">
      <Text size="sm" mb="xs">
        This SAE was imported and belongs to no recording yet. Choose one of {sae.model_name} at {sae.site}.{sae.layer} to measure it on and to describe its features with.
      </Text>
      <ErrorNote error={start.error} doing="Starting the evaluation" plain />
      <Group align="flex-end">
        <Select
          label="Recording"
          data={fitting.map((one) => ({ value: one.id, label: one.name }))}
          value={recording?.id ?? null}
          onChange={setChosen}
          placeholder="none fits: record this block first"
        />
        <Button onClick={() => start.mutate()} disabled={!recording} loading={start.isPending}>Evaluate on it</Button>
      </Group>
    </div>
  );
}
