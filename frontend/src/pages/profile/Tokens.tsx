import { Badge, Button, Code, Group, Modal, Stack, Table, Text } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { revokeToken, rotateToken, tokensQuery } from "@/api/account";
import type { Token } from "@/api/types";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ScrollX } from "@/components/ScrollX";
import { ago, moment } from "@/science/format";
import { NewToken } from "./NewToken";

/** The person's API tokens. */
export function Tokens() {
  const tokens = useQuery(tokensQuery);
  const queries = useQueryClient();
  const [adding, setAdding] = useState(false);
  const [secret, setSecret] = useState<string | null>(null);
  const refresh = () => queries.invalidateQueries({ queryKey: tokensQuery.queryKey });
  const rotate = useMutation({ mutationFn: rotateToken, onSuccess: (made) => setSecret(made.secret), onSettled: refresh });
  const revoke = useMutation({ mutationFn: revokeToken, onSettled: refresh });
  const made = (text: string) => {
    setAdding(false);
    setSecret(text);
    void refresh();
  };
  return (
    <section className="panel" aria-labelledby="tokens" data-testid="tokens">
      <Group justify="space-between" mb="sm">
        <h2 id="tokens">API tokens</h2>
        <Button variant="default" onClick={() => setAdding(true)} data-testid="new-token">New token</Button>
      </Group>
      <ErrorNote error={rotate.error ?? revoke.error} doing="Changing the token" />
      <Loaded query={tokens} what="your tokens" rows={2}>
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="No tokens">Programs use them in place of your password: <Code>Authorization: Bearer …</Code></Empty>
          ) : (
            <ScrollX>
              <Table>
                <Table.Thead>
                  <Table.Tr><Table.Th>Name</Table.Th><Table.Th>May</Table.Th><Table.Th>Last used</Table.Th><Table.Th>Ends</Table.Th><Table.Th><span className="visually-hidden">Actions</span></Table.Th></Table.Tr>
                </Table.Thead>
                <Table.Tbody>
                  {rows.map((token) => (
                    <TokenRow key={token.id} token={token} onRotate={() => rotate.mutate(token.id)} onRevoke={() => revoke.mutate(token.id)} />
                  ))}
                </Table.Tbody>
              </Table>
            </ScrollX>
          )
        }
      </Loaded>
      {adding && <NewToken onClose={() => setAdding(false)} onMade={made} />}
      {secret !== null && <Secret text={secret} onClose={() => setSecret(null)} />}
    </section>
  );
}

function TokenRow({ token, onRotate, onRevoke }: { token: Token; onRotate: () => void; onRevoke: () => void }) {
  const [sure, setSure] = useState<"rotate" | "revoke" | null>(null);
  return (
    <Table.Tr data-testid="token-row">
      <Table.Td>
        {token.name} <Text component="span" size="xs" c="dimmed" ff="monospace">iwb_{token.key}_…</Text>
        {token.project_name && <Text size="xs" c="dimmed">only in {token.project_name}</Text>}
      </Table.Td>
      <Table.Td>{token.scopes.join(", ")}</Table.Td>
      <Table.Td>{token.last_used_at ? ago(token.last_used_at) : "never"}</Table.Td>
      <Table.Td>{token.expired ? <Badge color="orange" variant="outline" tt="none">expired</Badge> : token.expires_at ? moment(token.expires_at) : "never"}</Table.Td>
      <Table.Td ta="right">
        <Group gap={4} justify="flex-end" wrap="nowrap">
          {sure === null ? (
            <>
              <Button variant="subtle" color="gray" onClick={() => setSure("rotate")}>New secret</Button>
              <Button variant="subtle" color="gray" onClick={() => setSure("revoke")} aria-label={`Revoke ${token.name}`}>Revoke</Button>
            </>
          ) : (
            <>
              <Button
                color="orange"
                onClick={() => {
                  setSure(null);
                  if (sure === "rotate") onRotate();
                  else onRevoke();
                }}
              >
                {sure === "rotate" ? "End the old secret" : "Revoke for good"}
              </Button>
              <Button variant="default" onClick={() => setSure(null)}>Keep</Button>
            </>
          )}
        </Group>
      </Table.Td>
    </Table.Tr>
  );
}

function Secret({ text, onClose }: { text: string; onClose: () => void }) {
  return (
    <Modal opened onClose={onClose} title="Your token" closeOnClickOutside={false}>
      <Stack>
        <Text size="sm">Copy it now: it is not stored and cannot be shown again.</Text>
        <Code block style={{ overflowWrap: "anywhere", whiteSpace: "pre-wrap" }} data-testid="token-secret">{text}</Code>
        <Group justify="flex-end">
          <Button variant="default" onClick={() => void navigator.clipboard.writeText(text)}>Copy</Button>
          <Button onClick={onClose}>Done</Button>
        </Group>
      </Stack>
    </Modal>
  );
}
