import { Badge } from "@mantine/core";

type Look = [sign: string, color: string, variant: "light" | "filled" | "outline"];

/** A sign, a word and a colour: the colour alone never carries the meaning. */
const LOOKS: Record<string, Look> = {
  waiting: ["…", "gray", "outline"],
  queued: ["…", "gray", "outline"],
  pending: ["…", "gray", "outline"],
  claimed: ["▸", "ink", "outline"],
  starting: ["▸", "ink", "outline"],
  running: ["▶", "ink", "light"],
  cancelling: ["◼", "gray", "light"],
  succeeded: ["✓", "ink", "light"],
  ready: ["✓", "ink", "light"],
  loaded: ["✓", "ink", "filled"],
  cancelled: ["◼", "gray", "outline"],
  stopped: ["◼", "gray", "outline"],
  failed: ["✕", "orange", "filled"],
  lost: ["✕", "orange", "filled"],
  stalled: ["!", "orange", "outline"],
};

export function StateBadge({ state, label }: { state: string; label?: string }) {
  const [sign, color, variant] = LOOKS[state] ?? ["·", "gray", "outline"];
  return (
    <Badge
      color={color}
      variant={variant}
      radius="sm"
      size="sm"
      tt="none"
      data-testid="state"
      data-state={state}
      leftSection={<span aria-hidden="true">{sign}</span>}
    >
      {label ?? state}
    </Badge>
  );
}
