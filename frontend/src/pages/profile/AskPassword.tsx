import { Button, Group, Modal, PasswordInput, Stack } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { reauthenticate, PasswordNeeded } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";

/** Runs sensitive actions; when the server wants the password first, asks for it and goes on. */
export function useSensitive() {
  const [waiting, setWaiting] = useState<{ go: () => void; stop: () => void } | null>(null);
  const run = async <Result,>(action: () => Promise<Result>): Promise<Result> => {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof PasswordNeeded)) throw error;
    }
    await new Promise<void>((go, stop) => setWaiting({ go, stop: () => stop(new Error("The password was not given.")) }));
    return action();
  };
  const close = (given: boolean) => {
    if (given) waiting?.go();
    else waiting?.stop();
    setWaiting(null);
  };
  return { run, dialog: waiting && <AskPassword onClose={close} /> };
}

function AskPassword({ onClose }: { onClose: (given: boolean) => void }) {
  const [password, setPassword] = useState("");
  const give = useMutation({ mutationFn: () => reauthenticate(password), onSuccess: () => onClose(true) });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    give.mutate();
  };
  return (
    <Modal opened onClose={() => onClose(false)} title="Your password, please">
      <form onSubmit={submit}>
        <Stack>
          <ErrorNote error={give.error} doing="Checking the password" plain />
          <PasswordInput label="Password" autoComplete="current-password" data-autofocus required value={password} onChange={(event) => setPassword(event.currentTarget.value)} data-testid="again" />
          <Group justify="flex-end">
            <Button variant="default" onClick={() => onClose(false)}>Cancel</Button>
            <Button type="submit" loading={give.isPending}>Continue</Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
