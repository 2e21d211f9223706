import { Button, Code, Group, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { activateTotp, authenticatorsQuery, beginTotp, newRecoveryCodes, recoveryCodes, removeTotp } from "@/api/account";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ago } from "@/science/format";
import { useSensitive } from "./AskPassword";

/** Codes at sign-in: set up, recovery codes, take away. */
export function SecondFactor() {
  const authenticators = useQuery(authenticatorsQuery);
  const queries = useQueryClient();
  const { run, dialog } = useSensitive();
  const [secret, setSecret] = useState<string | null>(null);
  const [codes, setCodes] = useState<string[] | null>(null);
  const refresh = () => queries.invalidateQueries({ queryKey: authenticatorsQuery.queryKey });

  const begin = useMutation({ mutationFn: beginTotp, onSuccess: setSecret });
  const activate = useMutation({
    mutationFn: (code: string) => run(() => activateTotp(code)),
    onSuccess: async () => {
      setSecret(null);
      await refresh();
      setCodes(await run(recoveryCodes));
    },
  });
  const show = useMutation({ mutationFn: (renew: boolean) => run(renew ? newRecoveryCodes : recoveryCodes), onSuccess: setCodes, onSettled: refresh });
  const remove = useMutation({ mutationFn: () => run(removeTotp), onSuccess: () => setCodes(null), onSettled: refresh });

  return (
    <section className="panel" aria-labelledby="second-factor" data-testid="second-factor">
      <h2 id="second-factor">Two-factor sign-in</h2>
      <ErrorNote error={begin.error ?? activate.error ?? show.error ?? remove.error} doing="Changing the second factor" plain />
      <Loaded query={authenticators} what="your second factors" rows={2}>
        {(rows) => {
          const totp = rows.find((row) => row.type === "totp");
          const recovery = rows.find((row) => row.type === "recovery_codes");
          if (!totp) {
            return secret === null ? (
              <Stack gap="xs" align="flex-start">
                <Text size="sm">Sign-in asks for your password only. An authenticator application on your phone makes a stolen password useless.</Text>
                <Button variant="default" size="sm" onClick={() => begin.mutate()} loading={begin.isPending} data-testid="set-up">Set up codes</Button>
              </Stack>
            ) : (
              <Enrol secret={secret} pending={activate.isPending} onCode={(code) => activate.mutate(code)} onCancel={() => setSecret(null)} />
            );
          }
          return (
            <Stack gap="xs" align="flex-start">
              <Text size="sm">
                Sign-in asks for a code. Set up {ago(new Date(totp.created_at * 1000).toISOString())}
                {recovery ? `; ${recovery.unused_code_count} of ${recovery.total_code_count} recovery codes are left.` : "."}
              </Text>
              <Group gap="xs">
                <Button variant="default" onClick={() => show.mutate(false)} loading={show.isPending}>Show recovery codes</Button>
                <Button variant="default" onClick={() => show.mutate(true)} loading={show.isPending}>Make new ones</Button>
                <Button variant="subtle" color="gray" onClick={() => remove.mutate()} loading={remove.isPending}>Switch off</Button>
              </Group>
            </Stack>
          );
        }}
      </Loaded>
      {codes && <RecoveryCodes codes={codes} onHide={() => setCodes(null)} />}
      {dialog}
    </section>
  );
}

interface EnrolProps {
  secret: string;
  pending: boolean;
  onCode: (code: string) => void;
  onCancel: () => void;
}

function Enrol({ secret, pending, onCode, onCancel }: EnrolProps) {
  const [code, setCode] = useState("");
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    onCode(code.replaceAll(" ", ""));
  };
  return (
    <form onSubmit={submit}>
      <Group align="flex-start" gap="lg">
        {/* The secret in the address makes the picture of a second try another one. */}
        <img src={`/api/v1/me/totp-qr?for=${secret.slice(0, 4)}`} alt="QR code for your authenticator application" width={180} height={180} />
        <Stack gap="xs" maw={380}>
          <Text size="sm">Read this with an authenticator application, or type the secret there:</Text>
          <Code style={{ overflowWrap: "anywhere" }} data-testid="totp-secret">{secret}</Code>
          <TextInput label="Code it shows" inputMode="numeric" autoComplete="one-time-code" required value={code} onChange={(event) => setCode(event.currentTarget.value)} data-testid="totp-code" />
          <Group gap="xs">
            <Button type="submit" size="sm" loading={pending}>Switch on</Button>
            <Button variant="default" size="sm" onClick={onCancel}>Cancel</Button>
          </Group>
        </Stack>
      </Group>
    </form>
  );
}

function RecoveryCodes({ codes, onHide }: { codes: string[]; onHide: () => void }) {
  return (
    <Stack gap="xs" mt="sm" align="flex-start">
      <Text size="sm">Each of these works once in place of a code. Keep them where your phone is not.</Text>
      <Code block data-testid="recovery-codes">{codes.join("\n")}</Code>
      <Group gap="xs">
        <Button variant="default" onClick={() => void navigator.clipboard.writeText(codes.join("\n"))}>Copy</Button>
        <Button variant="subtle" color="gray" onClick={onHide}>Hide</Button>
      </Group>
    </Stack>
  );
}
