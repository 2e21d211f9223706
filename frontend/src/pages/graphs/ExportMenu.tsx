import { Anchor, Button, Group, Text, useComputedColorScheme } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { graphFileUrl } from "@/api/graphs";
import { ErrorNote } from "@/components/ErrorNote";
import { fileName, pngOf, save } from "@/graphs/files";
import { DARK_INK, LIGHT_INK } from "@/graphs/look";
import { svgOf } from "@/graphs/svg";
import type { Graph } from "@/graphs/types";
import { targetWords } from "@/graphs/words";
import { fixed } from "@/science/format";
import type { Drawing } from "./GraphView";

interface ExportMenuProps {
  graph: Graph;
  name: string;
  drawing: Drawing;
  /** Id of the saved graph. */
  saved?: string;
}

/** The graph as files: ours and others' JSON, and the picture as it is drawn now. */
export function ExportMenu({ graph, name, drawing, saved }: ExportMenuProps) {
  const ink = useComputedColorScheme("light") === "dark" ? DARK_INK : LIGHT_INK;
  const title = `${name}: ${targetWords(graph, graph.target)}`;
  const { depth, verified, measured, spearman } = graph.summary;
  const svg = () => svgOf({ ...drawing, title, legend: `${graph.model}; depth ${depth}, ${verified} of ${measured} edges verified, Spearman ${spearman === null ? "–" : fixed(spearman, 2)}, completeness ${graph.completeness === null ? "–" : fixed(graph.completeness, 4)}` }, ink);
  const png = useMutation({ mutationFn: async () => save(fileName(name, "png"), await pngOf(svg())) });
  const link = (format: "microscope" | "attribution_graph", words: string) =>
    saved && <Anchor href={graphFileUrl(saved, format)} download size="sm" data-testid={`export-${format}`}>{words}</Anchor>;
  return (
    <div>
      <Group gap="sm" data-testid="graph-exports">
        <Text size="sm" c="dimmed">Take it out:</Text>
        {saved ? link("microscope", "JSON") : (
          <Button size="compact-sm" variant="default" onClick={() => save(fileName(name, "json"), new Blob([JSON.stringify(graph)], { type: "application/json" }))} data-testid="export-microscope">JSON</Button>
        )}
        {link("attribution_graph", "Attribution-graph JSON")}
        <Button size="compact-sm" variant="default" onClick={() => save(fileName(name, "svg"), new Blob([svg()], { type: "image/svg+xml" }))} data-testid="export-svg">SVG</Button>
        <Button size="compact-sm" variant="default" onClick={() => png.mutate()} loading={png.isPending} data-testid="export-png">PNG</Button>
      </Group>
      <ErrorNote error={png.error} doing="Drawing the picture" />
    </div>
  );
}
