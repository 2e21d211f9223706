import { Anchor, Center, Paper, Stack, Text, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useEffect, type ReactNode } from "react";

interface EntryProps {
  title: string;
  lead?: ReactNode;
  children: ReactNode;
}

/** A page for people who are not signed in: a small sheet in the middle. */
export function Entry({ title, lead, children }: EntryProps) {
  useEffect(() => {
    document.title = `${title} · InterpretabilityWorkbench`;
  }, [title]);
  return (
    <Center mih="100vh" p="md" component="main">
      <Paper withBorder p="xl" w="100%" maw={400}>
        <Stack gap="md">
          <div>
            <Text size="xs" c="dimmed">InterpretabilityWorkbench</Text>
            <Title order={1} fz="lg" style={{ overflowWrap: "anywhere" }}>{title}</Title>
            {lead && <Text size="sm" c="dimmed" component="div">{lead}</Text>}
          </div>
          {children}
        </Stack>
      </Paper>
    </Center>
  );
}

export function ToSignIn({ next }: { next?: string }) {
  return <Anchor component={Link} to="/login" search={{ next } as never} size="sm">Sign in</Anchor>;
}
