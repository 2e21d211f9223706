import { Button, Group, Text, TextInput, Title } from "@mantine/core";
import { useState, type SyntheticEvent } from "react";
import type { NodeGroup } from "@/graphs/fold";
import type { Graph } from "@/graphs/types";
import { counted } from "@/graphs/words";
import { percent } from "@/science/format";
import styles from "./Graphs.module.css";
import { usePinned } from "./usePinned";

interface PinnedPanelProps {
  graph: Graph;
  pins: readonly string[];
  wordsOf: (id: string) => string;
  onNode: (id: string) => void;
  onClear: () => void;
  onPinShown: () => void;
}

/** The pinned subgraph and how much of the target it explains. */
export function PinnedPanel({ graph, pins, wordsOf, onNode, onClear, onPinShown }: PinnedPanelProps) {
  const completeness = usePinned(graph, pins);
  return (
    <section className="panel" data-testid="pinned" data-count={pins.length}>
      <Group justify="space-between" gap="xs">
        <Title order={3}>Pinned</Title>
        <Group gap={4}>
          <Button size="compact-sm" variant="subtle" onClick={onPinShown} title="Pin every node that is drawn">Pin all drawn</Button>
          {pins.length > 0 && <Button size="compact-sm" variant="subtle" onClick={onClear}>Unpin all</Button>}
        </Group>
      </Group>
      {pins.length === 0 ? (
        <Text size="xs" c="dimmed">Pin nodes to see how much of the target they explain on their own. Everything else counts as error.</Text>
      ) : (
        <>
          <Text size="sm" role="status">{counted(pins.length, "node")}, completeness <strong data-testid="pinned-completeness" data-value={completeness ?? ""}>{completeness === undefined ? "…" : percent(completeness)}</strong></Text>
          <ul className={styles.chips}>
            {pins.slice(0, 60).map((id) => <li key={id}><Button size="compact-sm" variant="default" onClick={() => onNode(id)} title={wordsOf(id)}>{id.length > 26 ? `${id.slice(0, 25)}…` : id}</Button></li>)}
          </ul>
        </>
      )}
    </section>
  );
}

interface GroupsPanelProps {
  groups: readonly NodeGroup[];
  marked: readonly string[];
  onAdd: (name: string) => void;
  onUnmark: () => void;
  onToggle: (name: string) => void;
  onRemove: (name: string) => void;
  onAutomatic: () => void;
}

/** Named groups of nodes, by hand or by what they contribute to; a closed one is drawn as one box. */
export function GroupsPanel({ groups, marked, onAdd, onUnmark, onToggle, onRemove, onAutomatic }: GroupsPanelProps) {
  const [name, setName] = useState("");
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    if (!name.trim()) return;
    onAdd(name.trim());
    setName("");
  };
  return (
    <section className="panel" data-testid="groups">
      <Group justify="space-between" gap="xs">
        <Title order={3}>Groups</Title>
        <Button size="compact-sm" variant="subtle" onClick={onAutomatic} title="Put features together that contribute to the same nodes and are contributed to by the same" data-testid="group-automatic">Group by profile</Button>
      </Group>
      {marked.length > 0 ? (
        <form onSubmit={submit}>
          <Group gap={6} wrap="nowrap" align="flex-end" mt={4}>
            <TextInput size="xs" flex={1} label={`Name for ${counted(marked.length, "marked node")}`} maxLength={80} value={name} onChange={(event) => setName(event.currentTarget.value)} data-testid="group-name" />
            <Button type="submit" disabled={!name.trim()}>Group</Button>
            <Button variant="subtle" color="gray" onClick={onUnmark}>Unmark</Button>
          </Group>
        </form>
      ) : (
        groups.length === 0 && <Text size="xs" c="dimmed">Mark nodes (m, or Shift and click) and name them, or have them grouped by their attribution profile.</Text>
      )}
      {groups.map((group) => (
        <Group key={group.name} justify="space-between" gap={4} mt={4} data-testid="group">
          <Text size="sm" style={{ overflowWrap: "anywhere" }}>{group.name} <Text component="span" size="xs" c="dimmed">{group.nodes.length}</Text></Text>
          <Group gap={4}>
            <Button size="compact-sm" variant="default" aria-pressed={group.closed} onClick={() => onToggle(group.name)} aria-label={`${group.closed ? "Open" : "Close"} ${group.name}`}>{group.closed ? "Open" : "Close"}</Button>
            <Button size="compact-sm" variant="subtle" color="gray" onClick={() => onRemove(group.name)} aria-label={`Ungroup ${group.name}`}>Ungroup</Button>
          </Group>
        </Group>
      ))}
    </section>
  );
}
