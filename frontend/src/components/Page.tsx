import { Anchor, Box, Group, Stack, Text, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useEffect, type ReactNode } from "react";

export interface Crumb {
  label: string;
  to: string;
  params?: Record<string, string>;
}

interface PageProps {
  title: string;
  /** Shown instead of the title where it needs more than text. */
  heading?: ReactNode;
  crumbs?: readonly Crumb[];
  /** A sentence under the title. */
  lead?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
}

/** A page: its title in the window, a heading, and actions beside it. */
export function Page({ title, heading, crumbs = [], lead, actions, children }: PageProps) {
  useEffect(() => {
    document.title = `${title} · InterpretabilityWorkbench`;
  }, [title]);
  return (
    <Stack gap="md">
      <Group justify="space-between" align="flex-end" gap="sm">
        <Box miw={0}>
          {crumbs.length > 0 && (
            <Text size="xs" c="dimmed" component="nav" aria-label="Breadcrumbs">
              {crumbs.map((crumb) => (
                <span key={crumb.label}>
                  <Anchor component={Link} to={crumb.to} params={crumb.params as never} size="xs">{crumb.label}</Anchor>
                  {" › "}
                </span>
              ))}
            </Text>
          )}
          <Title order={1} style={{ overflowWrap: "anywhere" }}>{heading ?? title}</Title>
          {lead && <Text size="sm" c="dimmed" component="div">{lead}</Text>}
        </Box>
        {actions && <Group gap="xs">{actions}</Group>}
      </Group>
      {children}
    </Stack>
  );
}
