import { ActionIcon, Button, Group, Select, Table, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { transferProject } from "@/api/account";
import { addMember, changeRole, membersQuery, removeMember } from "@/api/projects";
import { asApiError } from "@/api/errors";
import { meQuery } from "@/api/session";
import type { Member, Role } from "@/api/types";
import { useProjectId, useRights } from "@/app/project";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { ScrollX } from "@/components/ScrollX";
import { ExportProject } from "@/pages/ExportProject";
import { Invitations } from "@/pages/Invitations";
import { ProjectPanel } from "@/pages/ProjectPanel";
import { UsagePanel } from "@/pages/UsagePanel";
import { ago } from "@/science/format";

const ROLES: { value: Role; label: string }[] = [
  { value: "viewer", label: "viewer: looks, and tries patches" },
  { value: "editor", label: "editor: also adds and changes" },
  { value: "owner", label: "owner: also manages members" },
];

export function Members() {
  const project = useProjectId();
  const { edit, manage, role: own } = useRights(project);
  const { data: me } = useQuery(meQuery);
  const navigate = useNavigate();
  const members = useQuery(membersQuery(project));
  const queries = useQueryClient();
  const refresh = () => queries.invalidateQueries({ queryKey: ["projects", project] });
  const change = useMutation({
    mutationFn: ({ user, role }: { user: string; role: Role }) => changeRole(project, user, role),
    onSettled: refresh,
  });
  const remove = useMutation({ mutationFn: (user: string) => removeMember(project, user), onSettled: refresh });
  const transfer = useMutation({ mutationFn: (user: string) => transferProject(project, user), onSettled: refresh });
  const leave = useMutation({
    mutationFn: (user: string) => removeMember(project, user),
    onSuccess: async () => {
      await navigate({ to: "/" });
      queries.removeQueries({ queryKey: ["projects", project] });
      await queries.invalidateQueries({ queryKey: ["projects"] });
    },
  });

  return (
    <Page title="Members" lead="Who may see this project, what they may do in it, and what it uses.">
      {manage && <ProjectPanel id={project} />}
      {manage && <AddMember project={project} onAdded={() => void refresh()} />}
      <ErrorNote error={change.error ?? remove.error ?? transfer.error} doing="Changing the members" />
      <Loaded query={members} what="the members">
        {(rows) => (
          <ScrollX panel>
            <Table>
              <Table.Thead>
                <Table.Tr><Table.Th>Name</Table.Th><Table.Th>Role</Table.Th><Table.Th>Since</Table.Th><Table.Th><span className="visually-hidden">Actions</span></Table.Th></Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {rows.map((member) => (
                  <MemberRow
                    key={member.user}
                    member={member}
                    manage={manage}
                    onTransfer={own === "owner" && member.role !== "owner" ? () => transfer.mutate(member.user) : undefined}
                    onRole={(role) => change.mutate({ user: member.user, role })}
                    onRemove={() => remove.mutate(member.user)}
                  />
                ))}
              </Table.Tbody>
            </Table>
          </ScrollX>
        )}
      </Loaded>
      {me && own !== null && (
        <div><Leave onLeave={() => leave.mutate(me.id)} pending={leave.isPending} /><ErrorNote error={leave.error} doing="Leaving" /></div>
      )}
      {manage && <Invitations project={project} roles={ROLES} />}
      <UsagePanel project={project} />
      {edit && <ExportProject project={project} />}
    </Page>
  );
}

function Leave({ onLeave, pending }: { onLeave: () => void; pending: boolean }) {
  const [sure, setSure] = useState(false);
  if (!sure) return <Button variant="subtle" color="gray" onClick={() => setSure(true)} data-testid="leave">Leave this project</Button>;
  return (
    <Group gap={4}>
      <Button color="orange" onClick={onLeave} loading={pending}>Leave: I can come back only when invited</Button>
      <Button variant="default" onClick={() => setSure(false)}>Stay</Button>
    </Group>
  );
}

interface MemberRowProps {
  member: Member;
  manage: boolean;
  onRole: (role: Role) => void;
  onRemove: () => void;
  /** Absent where it makes no sense. */
  onTransfer?: () => void;
}

function MemberRow({ member, manage, onRole, onRemove, onTransfer }: MemberRowProps) {
  const [sure, setSure] = useState<"remove" | "transfer" | null>(null);
  return (
    <Table.Tr data-testid="member-row" data-username={member.username}>
      <Table.Td>{member.username} <Text component="span" size="xs" c="dimmed">{member.email}</Text></Table.Td>
      <Table.Td>
        {manage ? (
          <Select aria-label={`Role of ${member.username}`} data={ROLES} value={member.role} onChange={(role) => role && onRole(role)} size="xs" w={240} />
        ) : (
          member.role
        )}
      </Table.Td>
      <Table.Td>{ago(member.created_at)}</Table.Td>
      <Table.Td ta="right">
        {manage && (
          <Group gap={4} justify="flex-end" wrap="nowrap">
            {sure === null ? (
              <>
                {onTransfer && <Button variant="subtle" color="gray" onClick={() => setSure("transfer")} aria-label={`Make ${member.username} owner in your place`}>Hand over</Button>}
                <ActionIcon variant="subtle" color="gray" onClick={() => setSure("remove")} aria-label={`Remove ${member.username}`}>✕</ActionIcon>
              </>
            ) : (
              <>
                <Button
                  color="orange"
                  onClick={() => {
                    setSure(null);
                    if (sure === "remove") onRemove();
                    else onTransfer?.();
                  }}
                >
                  {sure === "remove" ? "Remove" : "Make owner; I stay as editor"}
                </Button>
                <Button variant="default" onClick={() => setSure(null)}>Keep</Button>
              </>
            )}
          </Group>
        )}
      </Table.Td>
    </Table.Tr>
  );
}

function AddMember({ project, onAdded }: { project: string; onAdded: () => void }) {
  const [user, setUser] = useState("");
  const [role, setRole] = useState<Role>("viewer");
  const add = useMutation({
    mutationFn: () => addMember(project, { user: user.trim(), role }),
    onSuccess: () => {
      setUser("");
      onAdded();
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    add.mutate();
  };
  return (
    <form onSubmit={submit} className="panel">
      <Group align="flex-start" gap="sm">
        <TextInput
          label="User name"
          required
          value={user}
          onChange={(event) => setUser(event.currentTarget.value)}
          error={add.error ? asApiError(add.error).about("user") : undefined}
        />
        <Select label="Role" data={ROLES} value={role} onChange={(value) => value && setRole(value)} w={260} />
        <Button type="submit" size="sm" mt={22} loading={add.isPending}>Add</Button>
      </Group>
      <ErrorNote error={add.error} doing="Adding the member" shownElsewhere={["user"]} />
    </form>
  );
}
