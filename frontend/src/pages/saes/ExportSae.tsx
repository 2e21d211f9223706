import { Anchor, Button, Group, Menu, Text } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { isActive, jobKindsQuery } from "@/api/jobs";
import { archiveUrl, exportSae } from "@/api/saes";
import type { Job, Sae } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { JobOf } from "@/components/JobOf";
import { ago } from "@/science/format";

const LABELS: Record<string, string> = {
  native: "This project",
  saelens: "SAELens",
  sparsify: "sparsify",
  dictionary_learning: "dictionary_learning",
  neuronpedia: "Neuronpedia dashboards",
};

/** Choose a library to write the SAE for. */
export function ExportButton({ sae }: { sae: Sae }) {
  const kinds = useQuery(jobKindsQuery);
  const formats = kinds.data?.find((kind) => kind.name === "export_sae")?.fields.find((field) => field.name === "format")?.choices ?? [];
  const queries = useQueryClient();
  const start = useMutation({
    mutationFn: (format: string) => exportSae(sae.id, { format }),
    onSettled: () => queries.invalidateQueries({ queryKey: ["jobs"] }),
  });
  return (
    <>
      <Menu>
        <Menu.Target>
          <Button variant="default" loading={start.isPending} data-testid="export-sae">Export</Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Label>Write it for</Menu.Label>
          {formats.map((format) => (
            <Menu.Item key={format} onClick={() => start.mutate(format)} disabled={format === "neuronpedia" && !sae.analysis} data-testid={`export-${format}`}>
              {LABELS[format] ?? format}
              {format === "neuronpedia" && !sae.analysis && <Text size="xs" c="dimmed">needs analysed features</Text>}
            </Menu.Item>
          ))}
        </Menu.Dropdown>
      </Menu>
      <ErrorNote error={start.error} doing="Starting the export" plain />
    </>
  );
}

/** Exports made so far, newest first, each as one download. */
export function Exports({ jobs }: { jobs: readonly Job[] }) {
  const exports = jobs.filter((job) => job.kind === "export_sae");
  if (exports.length === 0) return null;
  return (
    <div className="panel" data-testid="exports">
      <Text size="sm" fw={600} mb={4}>Exports</Text>
      {exports.slice(0, 8).map((job) => (
        <Group key={job.id} gap="xs" justify="space-between">
          <Text size="sm">{job.title} <Text component="span" size="xs" c="dimmed">{ago(job.created_at)}</Text></Text>
          {job.artifact && <Anchor href={archiveUrl(job.artifact)} download size="sm" data-testid="download-export">Download (.zip)</Anchor>}
          {(isActive(job) || job.state !== "succeeded") && <JobOf job={job} />}
        </Group>
      ))}
    </div>
  );
}
