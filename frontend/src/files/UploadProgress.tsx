import { Button, Group, Progress, Stack, Text } from "@mantine/core";
import { bytes, percent } from "@/science/format";
import type { UploadsState } from "./useUploads";

/** How far an upload is, in a bar and in words. */
export function UploadProgress({ uploads }: { uploads: UploadsState }) {
  if (!uploads.running) return null;
  const share = uploads.total ? uploads.sent / uploads.total : 0;
  const sentence = `${bytes(uploads.sent)} of ${bytes(uploads.total)} sent`;
  return (
    <Stack gap={4} data-testid="upload-progress">
      <Progress value={share * 100} size={6} aria-label={sentence} />
      <Group justify="space-between" gap="xs">
        <Text size="xs" c="dimmed">{sentence} · {percent(share)}. An interrupted upload continues where it stopped.</Text>
        <Button variant="subtle" size="compact-xs" onClick={uploads.cancel}>Stop</Button>
      </Group>
    </Stack>
  );
}
