import { Alert, Button, Code, Group, Select, Stack, Table, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { invitationsQuery, invite, revokeInvitation } from "@/api/account";
import { asApiError } from "@/api/errors";
import type { Role } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ScrollX } from "@/components/ScrollX";
import { ago, moment } from "@/science/format";

interface InvitationsProps {
  project: string;
  roles: { value: Role; label: string }[];
}

/** Inviting people by address, whether they have an account or not. */
export function Invitations({ project, roles }: InvitationsProps) {
  const query = invitationsQuery(project);
  const rows = useQuery(query);
  const queries = useQueryClient();
  const refresh = () => queries.invalidateQueries({ queryKey: query.queryKey });
  const [email, setEmail] = useState("");
  const [role, setRole] = useState<Role>("viewer");
  const send = useMutation({
    mutationFn: () => invite(project, { email: email.trim(), role }),
    onSuccess: () => setEmail(""),
    onSettled: refresh,
  });
  const revoke = useMutation({ mutationFn: (id: string) => revokeInvitation(project, id), onSettled: refresh });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    send.mutate();
  };
  return (
    <section className="panel" aria-labelledby="invitations" data-testid="invitations">
      <h2 id="invitations">Invitations</h2>
      <form onSubmit={submit}>
        <Group align="flex-start" gap="sm">
          <TextInput
            label="E-mail address"
            type="email"
            required
            value={email}
            onChange={(event) => setEmail(event.currentTarget.value)}
            error={send.error ? asApiError(send.error).about("email") : undefined}
            data-testid="invite-email"
          />
          <Select label="Role offered" data={roles} value={role} onChange={(value) => value && setRole(value)} w={260} />
          <Button type="submit" size="sm" mt={22} loading={send.isPending}>Invite</Button>
        </Group>
      </form>
      <Stack gap="xs" mt="sm">
        <ErrorNote error={send.error ?? revoke.error} doing="Changing the invitations" shownElsewhere={["email"]} />
        {send.data && (
          <Alert variant="light" title={`${send.data.invitation.email} is invited`}>
            <Text size="sm">The link was sent by mail. You can also pass this one on to somebody who has an account with that address; it is shown only now:</Text>
            <Group gap="xs" wrap="nowrap">
              <Code style={{ overflowWrap: "anywhere" }} data-testid="invitation-link">{send.data.link}</Code>
              <Button variant="default" flex="none" onClick={() => void navigator.clipboard.writeText(send.data.link)}>Copy</Button>
            </Group>
          </Alert>
        )}
        <Loaded query={rows} what="the invitations" rows={2}>
          {(open) =>
            open.length === 0 ? <Text size="sm" c="dimmed">No invitation is open.</Text> : (
              <ScrollX>
                <Table>
                  <Table.Thead>
                    <Table.Tr><Table.Th>Address</Table.Th><Table.Th>Role</Table.Th><Table.Th>Invited</Table.Th><Table.Th>Until</Table.Th><Table.Th><span className="visually-hidden">Actions</span></Table.Th></Table.Tr>
                  </Table.Thead>
                  <Table.Tbody>
                    {open.map((one) => (
                      <Table.Tr key={one.id}>
                        <Table.Td>{one.email}</Table.Td>
                        <Table.Td>{one.role}</Table.Td>
                        <Table.Td>{ago(one.created_at)}{one.invited_by ? ` by ${one.invited_by}` : ""}</Table.Td>
                        <Table.Td>{one.expired ? "expired" : moment(one.expires_at)}</Table.Td>
                        <Table.Td ta="right"><Button variant="subtle" color="gray" onClick={() => revoke.mutate(one.id)} aria-label={`Revoke the invitation of ${one.email}`}>Revoke</Button></Table.Td>
                      </Table.Tr>
                    ))}
                  </Table.Tbody>
                </Table>
              </ScrollX>
            )
          }
        </Loaded>
      </Stack>
    </section>
  );
}
