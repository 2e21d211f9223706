import { Button, Table, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { patchVersionsQuery, restorePatch } from "@/api/patches";
import type { Patch } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { ScrollX } from "@/components/ScrollX";
import { useEditKinds } from "@/patches/kinds";
import { editSentence } from "@/patches/words";
import { ago } from "@/science/format";

interface VersionsProps {
  patch: Patch;
  edit: boolean;
  onRestored: () => void;
}

/** Every version of a patch, and the way back to each. */
export function Versions({ patch, edit, onRestored }: VersionsProps) {
  const [open, setOpen] = useState(false);
  const kinds = useEditKinds();
  const versions = useQuery({ ...patchVersionsQuery(patch.id), enabled: open });
  const restore = useMutation({ mutationFn: (version: number) => restorePatch(patch.id, version), onSuccess: onRestored });
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Versions ({patch.version})</summary>
      <ErrorNote error={restore.error ?? versions.error} doing={restore.error ? "Restoring" : "Loading the versions"} />
      <ScrollX>
        <Table fz="xs">
          <Table.Tbody>
            {(versions.data ?? []).map((one) => (
              <Table.Tr key={one.version}>
                <Table.Td>{one.version}</Table.Td>
                <Table.Td>{one.change} by {one.author ?? "–"}, {ago(one.created_at)}</Table.Td>
                <Table.Td>{one.plan.edits.length === 0 ? <Text size="xs" c="dimmed">no edits</Text> : one.plan.edits.map((made) => editSentence(made, kinds)).join("; ")}</Table.Td>
                <Table.Td>
                  {edit && one.version !== patch.version && (
                    <Button size="compact-xs" variant="default" onClick={() => restore.mutate(one.version)} loading={restore.isPending && restore.variables === one.version}>Restore</Button>
                  )}
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </ScrollX>
    </details>
  );
}
