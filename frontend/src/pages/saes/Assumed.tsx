import { List, Stack, Text, Title } from "@mantine/core";
import type { Sae } from "@/api/types";

/** What somebody assumed about settings of the files an SAE was imported from; it stays with the SAE. */
export function Assumed({ sae }: { sae: Sae }) {
  const assumed = (sae.summary.assumed ?? []) as string[];
  if (assumed.length === 0) return null;
  return (
    <Stack gap="xs" className="panel" data-testid="assumed">
      <Title order={2}>Assumed at its import</Title>
      <Text size="sm">Its files have settings that are not read as they stand there. What it computes is right only if this is:</Text>
      <List size="sm">{assumed.map((sentence) => <List.Item key={sentence}>{sentence}</List.Item>)}</List>
    </Stack>
  );
}
