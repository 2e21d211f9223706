import { ActionIcon, Modal, Table } from "@mantine/core";
import { useDisclosure, useHotkeys } from "@mantine/hooks";

const SHORTCUTS: readonly [keys: string[], does: string][] = [
  [["/"], "focus the search of the page"],
  [["[", "]"], "previous or next feature"],
  [["Space"], "mute the selected edit"],
  [["s"], "mute all edits but the selected one; again: none"],
  [["z"], "undo"],
  [["Shift", "z"], "redo"],
  [["←", "→"], "nudge the strength; with Shift ten times as far"],
  [["←", "↑", "→", "↓"], "in a graph: the next node; Enter opens it"],
  [["p"], "in a graph: pin the selected node"],
  [["m"], "in a graph: mark the selected node for a group"],
  [["+", "-", "0"], "in a graph: larger, smaller, as wide as its place"],
  [["?"], "this list"],
];

export function ShortcutsButton() {
  const [open, { toggle, close }] = useDisclosure(false);
  // The question mark needs Shift on most keyboards, so the physical key does not matter.
  useHotkeys([["shift+?", toggle], ["?", toggle]]);
  return (
    <>
      <ActionIcon variant="subtle" color="gray" size="md" onClick={toggle} aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)">
        <span aria-hidden="true">?</span>
      </ActionIcon>
      <Modal opened={open} onClose={close} title="Keyboard shortcuts" size="sm">
        <Table>
          <Table.Tbody>
            {SHORTCUTS.map(([keys, does]) => (
              <Table.Tr key={does}>
                <Table.Td>{keys.map((key) => <span key={key}><kbd>{key}</kbd> </span>)}</Table.Td>
                <Table.Td>{does}</Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Modal>
    </>
  );
}
