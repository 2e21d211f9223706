import { Stack, Text } from "@mantine/core";
import type { ReactNode } from "react";

/** Nothing here yet: what would be here, and how to get it. */
export function Empty({ title, children, action }: { title: string; children?: ReactNode; action?: ReactNode }) {
  return (
    <Stack align="flex-start" gap="xs" className="panel" data-testid="empty">
      <Text fw={600}>{title}</Text>
      {children && <Text c="dimmed" size="sm" component="div">{children}</Text>}
      {action}
    </Stack>
  );
}
