import { Button, PasswordInput, Stack, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { signUp, type SignedIn } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";

interface SignUpFormProps {
  /** The secret of an invitation, and the address it was sent to. */
  invitation?: { text: string; email: string };
  onDone: (reached: SignedIn) => Promise<void>;
}

const FIELDS = ["username", "email", "password"] as const;

export function SignUpForm({ invitation, onDone }: SignUpFormProps) {
  const [username, setUsername] = useState("");
  const [email, setEmail] = useState(invitation?.email ?? "");
  const [password, setPassword] = useState("");
  const attempt = useMutation({
    mutationFn: () => signUp({ username: username.trim(), email: email.trim(), password }, invitation?.text),
    onSuccess: onDone,
  });
  const about = (field: (typeof FIELDS)[number]) => (attempt.error ? asApiError(attempt.error).about(field) : undefined);
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    attempt.mutate();
  };
  return (
    <form onSubmit={submit} data-testid="sign-up-form">
      <Stack gap="md">
        <ErrorNote error={attempt.error} doing="Making the account" plain shownElsewhere={FIELDS} />
        <TextInput
          label="User name"
          autoComplete="username"
          autoFocus
          required
          maxLength={150}
          value={username}
          onChange={(event) => setUsername(event.currentTarget.value)}
          error={about("username")}
          data-testid="username"
        />
        <TextInput
          label="E-mail address"
          type="email"
          autoComplete="email"
          required
          readOnly={invitation !== undefined}
          value={email}
          onChange={(event) => setEmail(event.currentTarget.value)}
          error={about("email")}
          data-testid="email"
        />
        <PasswordInput
          label="Password"
          description="At least 8 characters, not only digits, nothing common."
          autoComplete="new-password"
          required
          value={password}
          onChange={(event) => setPassword(event.currentTarget.value)}
          error={about("password")}
          data-testid="password"
        />
        <Button type="submit" size="sm" loading={attempt.isPending}>Make account</Button>
      </Stack>
    </form>
  );
}
