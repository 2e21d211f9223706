import { Button, Menu, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { jobKindsQuery } from "@/api/jobs";
import { exportSae } from "@/api/saes";
import type { Sae } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";

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
  const invalidate = useInvalidate();
  const start = useMutation({
    mutationFn: (format: string) => exportSae(sae.id, { format }),
    onSettled: () => invalidate("jobs"),
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
