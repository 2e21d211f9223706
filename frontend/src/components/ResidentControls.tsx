import { Button, Group, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { loadModel, unloadModel } from "@/api/registry";
import type { Model } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { bytes } from "@/science/format";
import { ErrorNote } from "./ErrorNote";
import { StateBadge } from "./StateBadge";

/** What a model's process is doing, in one word. */
export function residentState(model: Model): string {
  const state = model.resident?.state ?? "stopped";
  if (model.wanted_loaded && state === "stopped") return "starting";
  return state === "ready" ? "loaded" : state;
}

const WORDS: Record<string, string> = {
  loaded: "in memory",
  starting: "loading",
  stopped: "not in memory",
  failed: "could not be loaded",
  lost: "lost, restarting",
};

/** Whether the model is in memory, and the button that changes it. */
export function ResidentControls({ model, edit }: { model: Model; edit: boolean }) {
  const invalidate = useInvalidate();
  const refresh = () => invalidate("models");
  const load = useMutation({ mutationFn: () => loadModel(model.id), onSettled: refresh });
  const unload = useMutation({ mutationFn: () => unloadModel(model.id), onSettled: refresh });
  const state = residentState(model);
  const resident = model.resident;
  return (
    <>
      <Group gap="xs">
        <StateBadge state={state} label={WORDS[state]} />
        {state === "loaded" && <Text size="xs" c="dimmed">{bytes(resident?.memory_bytes)}{resident?.host && ` on ${resident.host}`}</Text>}
        {edit && (model.wanted_loaded && state !== "failed" ? (
          <Button variant="default" onClick={() => unload.mutate()} loading={unload.isPending} data-testid="unload-model">Unload</Button>
        ) : (
          <Button variant="light" onClick={() => load.mutate()} loading={load.isPending} disabled={model.state !== "ready"} data-testid="load-model">Load</Button>
        ))}
      </Group>
      {resident?.code && state !== "loaded" && state !== "stopped" && (
        <Text size="xs">{resident.message} <strong>{resident.hint}</strong></Text>
      )}
      <ErrorNote error={load.error ?? unload.error} doing={load.error ? "Loading" : "Unloading"} />
    </>
  );
}
