import { Anchor, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { archiveUrl, artifactQuery, fileUrl } from "@/api/saes";
import { bytes } from "@/science/format";

/** Files to take away, with size and hash. */
export function Files({ artifact, title }: { artifact: string; title: string }) {
  const { data } = useQuery(artifactQuery(artifact));
  if (!data) return null;
  return (
    <details>
      <summary>{title} ({bytes(data.bytes)})</summary>
      <Anchor href={archiveUrl(artifact)} download size="sm">All of them (.zip)</Anchor>
      <ul style={{ margin: "0.4rem 0", paddingLeft: "1.2rem" }}>
        {data.files.map((file) => (
          <li key={file.path}>
            <Anchor href={fileUrl(artifact, file.path)} download size="sm">{file.path}</Anchor>{" "}
            <Text component="span" size="xs" c="dimmed" title={`sha256 ${file.sha256}`}>{bytes(file.bytes)} · sha256 {file.sha256.slice(0, 12)}…</Text>
          </li>
        ))}
      </ul>
    </details>
  );
}
