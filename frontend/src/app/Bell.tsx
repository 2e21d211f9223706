import { ActionIcon, Button, Group, Indicator, Popover, Stack, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { markAllRead, notificationsQuery, unreadQuery } from "@/api/notifications";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { TextLink } from "@/components/TextLink";
import { ago } from "@/science/format";

/** Notifications of the account. */
export function Bell() {
  const [open, setOpen] = useState(false);
  const { data: unread = 0 } = useQuery(unreadQuery);
  const label = unread === 0 ? "Notifications, none unread" : `Notifications, ${unread} unread`;
  return (
    <Popover opened={open} onChange={setOpen} position="bottom-end" width={360} trapFocus returnFocus>
      <Indicator label={unread > 99 ? "99+" : unread} disabled={unread === 0} size={16} offset={4} color="orange">
        <Popover.Target>
          <ActionIcon variant="subtle" color="gray" size="md" onClick={() => setOpen(!open)} aria-label={label} title={label} data-testid="bell" data-unread={unread}>
            <svg aria-hidden="true" width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" strokeWidth="1.4" strokeLinecap="round" strokeLinejoin="round">
              <path d="M8 2a4 4 0 0 0-4 4v3l-1.5 2.5h11L12 9V6a4 4 0 0 0-4-4Z M6.6 13.5a1.5 1.5 0 0 0 2.8 0" />
            </svg>
          </ActionIcon>
        </Popover.Target>
      </Indicator>
      <Popover.Dropdown>{open && <Newest onFollow={() => setOpen(false)} />}</Popover.Dropdown>
    </Popover>
  );
}

const SIGNS: Record<string, string> = { success: "✓", info: "·", warning: "!", error: "✕" };

function Newest({ onFollow }: { onFollow: () => void }) {
  const invalidate = useInvalidate();
  const query = useQuery({ ...notificationsQuery, staleTime: 0 });
  const read = useMutation({ mutationFn: markAllRead, onSettled: () => invalidate("notifications") });
  return (
    <Loaded query={query} what="the notifications">
      {(rows) => (
        <Stack gap="xs">
          <Group justify="space-between">
            <Text fw={600} size="sm">Notifications</Text>
            <Button size="compact-xs" variant="default" onClick={() => read.mutate()} loading={read.isPending} disabled={rows.every((row) => row.read_at !== null)} data-testid="mark-all-read">Mark all as read</Button>
          </Group>
          <ErrorNote error={read.error} doing="Marking as read" />
          {rows.length === 0 && <Text size="sm" c="dimmed">Nothing yet. You are told here when your jobs end.</Text>}
          {rows.map((row) => (
            <div key={row.id} data-testid="notification">
              <Text size="sm" fw={row.read_at === null ? 600 : 400}>
                <span aria-hidden="true">{SIGNS[row.level] ?? "·"} </span>
                {row.subject_type === "job" && row.subject_id ? (
                  <TextLink to="/jobs/$job" params={{ job: row.subject_id }} onClick={onFollow}>{row.title}</TextLink>
                ) : row.title}
              </Text>
              {row.message && <Text size="xs">{row.message}</Text>}
              <Text size="xs" c="dimmed">{ago(row.created_at)}{row.read_at === null ? " · unread" : ""}</Text>
            </div>
          ))}
        </Stack>
      )}
    </Loaded>
  );
}
