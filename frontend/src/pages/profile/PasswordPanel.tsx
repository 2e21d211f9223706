import { Button, Group, PasswordInput, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { changePassword } from "@/api/account";
import { asApiError } from "@/api/errors";
import { ErrorNote } from "@/components/ErrorNote";

const FIELDS = ["current_password", "new_password"] as const;

export function PasswordPanel() {
  const [current, setCurrent] = useState("");
  const [next, setNext] = useState("");
  const change = useMutation({
    mutationFn: () => changePassword(current, next),
    onSuccess: () => {
      setCurrent("");
      setNext("");
    },
  });
  const about = (field: (typeof FIELDS)[number]) => (change.error ? asApiError(change.error).about(field) : undefined);
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    change.mutate();
  };
  return (
    <section className="panel" aria-labelledby="password">
      <h2 id="password">Password</h2>
      <form onSubmit={submit} data-testid="password-form">
        <Group align="flex-start" gap="sm">
          <PasswordInput label="Current password" autoComplete="current-password" required w={240} value={current} onChange={(event) => setCurrent(event.currentTarget.value)} error={about("current_password")} />
          <PasswordInput label="New password" autoComplete="new-password" required w={240} value={next} onChange={(event) => setNext(event.currentTarget.value)} error={about("new_password")} />
          <Button type="submit" size="sm" variant="default" mt={22} loading={change.isPending}>Change password</Button>
        </Group>
        {change.isSuccess && <Text size="sm" role="status" mt="xs">The password is changed. Your live connections elsewhere were ended.</Text>}
        <ErrorNote error={change.error} doing="Changing the password" plain shownElsewhere={FIELDS} />
      </form>
    </section>
  );
}
