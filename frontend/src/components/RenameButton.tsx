import { Button, Popover, Stack, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { rename, type Edited, type Renamed } from "@/api/names";
import { useInvalidate } from "@/api/useInvalidate";
import { ConflictNote } from "./ConflictNote";

/** Gives something another name, unless somebody else has just done so. */
export function RenameButton({ kind, row }: { kind: Renamed; row: Edited & { name: string } }) {
  const [opened, setOpened] = useState(false);
  return (
    <Popover opened={opened} onChange={setOpened} width={320} position="bottom-end" shadow="md" trapFocus withinPortal>
      <Popover.Target>
        <Button variant="default" onClick={() => setOpened(!opened)} aria-label={`Rename ${row.name}`} data-testid="rename">Rename</Button>
      </Popover.Target>
      <Popover.Dropdown>{opened && <RenameForm kind={kind} row={row} onDone={() => setOpened(false)} />}</Popover.Dropdown>
    </Popover>
  );
}

function RenameForm({ kind, row, onDone }: { kind: Renamed; row: Edited & { name: string }; onDone: () => void }) {
  // A list that is loaded again meanwhile must not make the change one of the newer state.
  const [from] = useState(row);
  const [name, setName] = useState(row.name);
  const invalidate = useInvalidate();
  const refresh = () => invalidate(kind, "lineage");
  const change = useMutation({
    mutationFn: () => rename(kind, from, name.trim()),
    onSuccess: async () => {
      await refresh();
      onDone();
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    change.mutate();
  };
  return (
    <form onSubmit={submit}>
      <Stack gap="xs">
        <TextInput
          label="Name"
          required
          maxLength={120}
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          error={change.error ? asApiError(change.error).about("name") : undefined}
          data-autofocus
        />
        <ConflictNote error={change.error} doing="Renaming" shownElsewhere={["name"]} onReload={() => void refresh().then(onDone)} />
        <Button type="submit" loading={change.isPending} disabled={!name.trim() || name.trim() === from.name}>Save</Button>
      </Stack>
    </form>
  );
}
