import { Button, Group, Stack, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { updateMe } from "@/api/account";
import { meQuery } from "@/api/session";
import type { Me } from "@/api/types";
import frame from "@/app/Shell.module.css";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { MyUsagePanel } from "@/pages/UsagePanel";
import { PasswordPanel } from "./PasswordPanel";
import { SecondFactor } from "./SecondFactor";
import { Tokens } from "./Tokens";

export function Profile() {
  const me = useQuery(meQuery);
  return (
    <div className={frame.content}>
      <Page title="Profile" lead={me.data ? `${me.data.username} · ${me.data.email}` : undefined}>
        <Loaded query={me} what="your profile">
          {(who) =>
            who && (
              <Stack gap="md" maw={860}>
                <Names me={who} />
                <PasswordPanel />
                <SecondFactor />
                <MyUsagePanel />
                <Tokens />
              </Stack>
            )
          }
        </Loaded>
      </Page>
    </div>
  );
}

function Names({ me }: { me: Me }) {
  const queries = useQueryClient();
  const [first, setFirst] = useState(me.first_name);
  const [last, setLast] = useState(me.last_name);
  const save = useMutation({
    mutationFn: () => updateMe({ first_name: first.trim(), last_name: last.trim() }),
    onSuccess: (saved) => queries.setQueryData(meQuery.queryKey, saved),
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    save.mutate();
  };
  return (
    <section className="panel" aria-labelledby="names">
      <h2 id="names">Name</h2>
      <form onSubmit={submit}>
        <Group align="flex-end" gap="sm">
          <TextInput label="First name" autoComplete="given-name" maxLength={150} value={first} onChange={(event) => setFirst(event.currentTarget.value)} />
          <TextInput label="Last name" autoComplete="family-name" maxLength={150} value={last} onChange={(event) => setLast(event.currentTarget.value)} />
          <Button type="submit" size="sm" variant="default" loading={save.isPending}>Save</Button>
        </Group>
        <ErrorNote error={save.error} doing="Saving the name" />
      </form>
    </section>
  );
}
