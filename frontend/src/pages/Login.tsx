import { Anchor, Button, Divider, Group, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { submitCode, goToProvider, meQuery, signIn, siteQuery, type SignedIn } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";
import { Entry } from "@/pages/entry/Entry";

/** Addresses the server answers itself; the application's router does not know them. */
const OUTSIDE = /^\/(admin|api|accounts)\//;

export function Login() {
  const { next } = useSearch({ from: "/login" });
  const navigate = useNavigate();
  const queries = useQueryClient();
  const [stage, setStage] = useState<SignedIn>();

  const proceed = async (reached: SignedIn) => {
    setStage(reached);
    if (reached !== "done") return;
    queries.clear();
    if (next !== undefined && OUTSIDE.test(next)) {
      window.location.assign(next);
      return;
    }
    await queries.query({ ...meQuery, staleTime: 0 });
    await navigate({ href: next ?? "/" });
  };

  if (stage === "second-factor") return <SecondFactor onDone={proceed} />;
  if (stage === "verify-email") {
    return (
      <Entry title="Confirm your address">
        <Text size="sm">A link was sent to your e-mail address. Follow it, then sign in.</Text>
      </Entry>
    );
  }
  return <NameAndPassword next={next} onDone={proceed} />;
}

function NameAndPassword({ next, onDone }: { next?: string; onDone: (reached: SignedIn) => Promise<void> }) {
  const site = useQuery(siteQuery);
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const attempt = useMutation({ mutationFn: () => signIn(name.trim(), password), onSuccess: onDone });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    attempt.mutate();
  };
  const providers = site.data?.socialaccount?.providers ?? [];
  return (
    <Entry title="Sign in" lead="Sign in to see your projects.">
      <form onSubmit={submit} data-testid="login-form">
        <Stack gap="md">
          <ErrorNote error={attempt.error} doing="Signing in" plain />
          <TextInput
            label="User name or e-mail address"
            name="username"
            autoComplete="username"
            autoFocus
            required
            value={name}
            onChange={(event) => setName(event.currentTarget.value)}
            data-testid="username"
          />
          <PasswordInput
            label="Password"
            name="password"
            autoComplete="current-password"
            required
            value={password}
            onChange={(event) => setPassword(event.currentTarget.value)}
            data-testid="password"
          />
          <Button type="submit" size="sm" loading={attempt.isPending} data-testid="submit">Sign in</Button>
        </Stack>
      </form>
      {providers.length > 0 && <Divider label="or" />}
      {providers.map((provider) => (
        <Button key={provider.id} variant="default" size="sm" onClick={() => goToProvider(provider.id, next ?? "/")}>{provider.name}</Button>
      ))}
      <Group justify="space-between">
        <Anchor component={Link} to="/password/reset" size="sm">Forgot your password?</Anchor>
        {site.data?.account.is_open_for_signup ? (
          <Anchor component={Link} to="/sign-up" size="sm">Make an account</Anchor>
        ) : (
          <Text size="xs" c="dimmed">Accounts are made by invitation.</Text>
        )}
      </Group>
    </Entry>
  );
}

function SecondFactor({ onDone }: { onDone: (reached: SignedIn) => Promise<void> }) {
  const [code, setCode] = useState("");
  const attempt = useMutation({ mutationFn: () => submitCode(code.replaceAll(" ", "")), onSuccess: onDone });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    attempt.mutate();
  };
  return (
    <Entry title="One more step" lead="Your account asks for a code besides the password.">
      <form onSubmit={submit} data-testid="code-form">
        <Stack gap="md">
          <ErrorNote error={attempt.error} doing="Checking the code" plain />
          <TextInput
            label="Code"
            description="Six digits from your authenticator application, or one of your recovery codes."
            name="code"
            autoComplete="one-time-code"
            inputMode="numeric"
            autoFocus
            required
            value={code}
            onChange={(event) => setCode(event.currentTarget.value)}
            data-testid="code"
          />
          <Button type="submit" size="sm" loading={attempt.isPending}>Continue</Button>
        </Stack>
      </form>
    </Entry>
  );
}
