import { Button, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { forgetPassword, resetPassword } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";
import { Entry, ToSignIn } from "./Entry";

export function ForgottenPassword() {
  const [email, setEmail] = useState("");
  const ask = useMutation({ mutationFn: () => forgetPassword(email.trim()) });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    ask.mutate();
  };
  return (
    <Entry title="Forgot your password?" lead="A link to choose a new one is sent to your e-mail address.">
      {ask.isSuccess ? (
        <Text size="sm" role="status">If there is an account with this address, a mail is on its way.</Text>
      ) : (
        <form onSubmit={submit}>
          <Stack gap="md">
            <ErrorNote error={ask.error} doing="Asking for the mail" plain />
            <TextInput label="E-mail address" type="email" autoComplete="email" autoFocus required value={email} onChange={(event) => setEmail(event.currentTarget.value)} />
            <Button type="submit" size="sm" loading={ask.isPending}>Send the link</Button>
          </Stack>
        </form>
      )}
      <ToSignIn />
    </Entry>
  );
}

export function NewPassword() {
  const { key } = useParams({ from: "/password/reset/$key" });
  const [password, setPassword] = useState("");
  const set = useMutation({ mutationFn: () => resetPassword(key, password) });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    set.mutate();
  };
  return (
    <Entry title="Choose a new password">
      {set.isSuccess ? (
        <Text size="sm" role="status">The new password is set.</Text>
      ) : (
        <form onSubmit={submit}>
          <Stack gap="md">
            <ErrorNote error={set.error} doing="Setting the password" plain />
            <PasswordInput label="New password" autoComplete="new-password" autoFocus required value={password} onChange={(event) => setPassword(event.currentTarget.value)} />
            <Button type="submit" size="sm" loading={set.isPending}>Set password</Button>
          </Stack>
        </form>
      )}
      <ToSignIn />
    </Entry>
  );
}
