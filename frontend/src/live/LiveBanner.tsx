import { Alert, Button, Group, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { loadModel } from "@/api/registry";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { StateBadge } from "@/components/StateBadge";
import { bytes } from "@/science/format";
import type { LiveSession, LiveState } from "./liveSession";
import { CLOSED_FORBIDDEN, CLOSED_SIGNED_OUT } from "./socket";

interface LiveBannerProps {
  model: string;
  state: LiveState;
  session: LiveSession | null;
  /** Whether the reader may load models. */
  edit: boolean;
}

interface Trouble { state: string; title: string; text: ReactNode; load?: boolean; retryNow?: boolean }

function ended(code: number | null): Trouble {
  if (code === CLOSED_SIGNED_OUT) return { state: "lost", title: "You are signed out", text: "Reload the page and sign in." };
  if (code === CLOSED_FORBIDDEN) return { state: "failed", title: "Not allowed", text: "Your role does not allow live sessions with this model." };
  return { state: "failed", title: "This model is gone", text: "It was removed, or you may no longer see it." };
}

const AT_LIMIT: Trouble = {
  state: "lost",
  title: "The limit of live sessions is reached",
  text: "You or the project have as many open as the limits allow. Close another window with a live model; this one goes on by itself as soon as there is room.",
  retryNow: true,
};

function troubleOf({ connection, endedWith, atLimit, resident }: LiveState): Trouble | null {
  if (connection === "ended") return ended(endedWith);
  if (atLimit) return AT_LIMIT;
  if (connection === "lost") {
    return { state: "lost", title: "Connection lost", text: "Trying again; the prompt and the edits will be restored.", retryNow: true };
  }
  if (!resident) return null;
  const text = <>{resident.message} <strong>{resident.hint}</strong></>;
  switch (resident.state) {
    case "ready":
      return null;
    case "starting":
      return { state: "starting", title: "The model is being loaded", text };
    case "lost":
      return { state: "lost", title: "The model’s process ended", text };
    case "failed":
      return { state: "failed", title: "The model could not be loaded", text, load: true };
    default:
      return { state: "stopped", title: "The model is not in memory", text: resident.code === "model_idle" ? text : "Load it to see its answers here.", load: true };
  }
}

/** How the live connection is, and what to do when it is not well. */
export function LiveBanner({ model, state, session, edit }: LiveBannerProps) {
  const invalidate = useInvalidate();
  const load = useMutation({ mutationFn: () => loadModel(model), onSettled: () => invalidate("models") });
  const trouble = troubleOf(state);
  return (
    <div role="status" aria-live="polite" data-testid="live-state" data-connection={state.connection} data-resident={state.resident?.state ?? ""}>
      {trouble ? (
        <Alert variant="light" color={trouble.state === "starting" ? "ink" : "orange"} title={trouble.title}>
          <Group justify="space-between">
            <Text size="sm">{trouble.text}</Text>
            {trouble.load && (edit ? (
              <Button onClick={() => load.mutate()} loading={load.isPending} data-testid="load-model">Load model</Button>
            ) : (
              <Text size="sm">An editor of the project can load it.</Text>
            ))}
            {trouble.retryNow && <Button variant="default" onClick={() => session?.retryNow()}>Try now</Button>}
          </Group>
          <ErrorNote error={load.error} doing="Loading the model" />
        </Alert>
      ) : (
        <Group gap="xs">
          <StateBadge state={state.resident ? "loaded" : "starting"} label={state.resident ? "model in memory" : "connecting"} />
          {state.reconnected && <Text size="xs" c="dimmed">reconnected; prompt and edits restored</Text>}
          {state.ahead > 0 && (
            <Text size="xs" c="dimmed" data-testid="queue">{state.ahead === 1 ? "1 request" : `${String(state.ahead)} requests`} of others first</Text>
          )}
          {state.resident?.memory_bytes != null && <Text size="xs" c="dimmed">{bytes(state.resident.memory_bytes)}</Text>}
        </Group>
      )}
    </div>
  );
}
