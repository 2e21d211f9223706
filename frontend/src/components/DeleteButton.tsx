import { Button, Group } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { ErrorNote } from "./ErrorNote";

interface DeleteButtonProps {
  /** What is deleted, by name. */
  what: string;
  remove: () => Promise<unknown>;
  onDeleted: () => void;
}

/** Deletes after a second click, and says why when it was refused. */
export function DeleteButton({ what, remove, onDeleted }: DeleteButtonProps) {
  const [sure, setSure] = useState(false);
  const deletion = useMutation({ mutationFn: remove, onSuccess: onDeleted, onSettled: () => setSure(false) });
  return (
    <>
      {sure ? (
        <Group gap={4} wrap="nowrap">
          <Button color="orange" onClick={() => deletion.mutate()} loading={deletion.isPending} autoFocus>Delete {what}</Button>
          <Button variant="default" onClick={() => setSure(false)}>Keep</Button>
        </Group>
      ) : (
        <Button variant="subtle" color="gray" onClick={() => setSure(true)} aria-label={`Delete ${what}`}>Delete</Button>
      )}
      <ErrorNote error={deletion.error} doing={`Deleting ${what}`} />
    </>
  );
}
