import { Button, Group, Text, Textarea } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import { deleteGraph, graphDocumentQuery, graphQuery, updateGraph, type GraphDetail } from "@/api/graphs";
import { useInvalidate } from "@/api/useInvalidate";
import { useProjectId, useRights } from "@/app/project";
import { ConflictNote } from "@/components/ConflictNote";
import { DeleteButton } from "@/components/DeleteButton";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { RenameButton } from "@/components/RenameButton";
import type { Graph } from "@/graphs/types";
import { keptOf, searchOf, viewFrom, viewOf, type GraphView as View } from "@/graphs/view";
import { targetWords } from "@/graphs/words";
import { ago } from "@/science/format";
import { Comments } from "./Comments";
import { ExportMenu } from "./ExportMenu";
import { GraphView } from "./GraphView";

/** A graph of the project, by its address. */
export function SavedGraph() {
  const { graph: id } = useParams({ from: "/signed-in/projects/$project/graphs/$graph" });
  const query = useQuery(graphQuery(id));
  return <Loaded query={query} what="the graph" rows={8}>{(row) => (row.state === "ready" ? <Ready row={row} /> : <Underway row={row} />)}</Loaded>;
}

function Underway({ row }: { row: GraphDetail }) {
  const project = useProjectId();
  const job = useJobAbout(project, row.id);
  const { edit } = useRights(project);
  const failed = row.state === "failed";
  return (
    <Page
      title={row.name}
      crumbs={[{ label: "Graphs", to: "/projects/$project/graphs", params: { project } }]}
      actions={edit && failed && <Remove row={row} />}
    >
      <div className="panel">
        <Text size="sm">{failed ? "This graph was not computed." : "This graph is being computed."}</Text>
        {job ? <JobOf job={job} /> : <Text size="sm">{row.error}</Text>}
      </div>
    </Page>
  );
}

/** Deletes the graph and goes back to the list. */
function Remove({ row }: { row: GraphDetail }) {
  const navigate = useNavigate();
  const invalidate = useInvalidate();
  const leave = () => void navigate({ to: "/projects/$project/graphs", params: { project: row.project } }).then(() => invalidate("graphs", "lineage"));
  return <DeleteButton what={row.name} remove={() => deleteGraph(row.id)} onDeleted={leave} />;
}

function Ready({ row }: { row: GraphDetail }) {
  const document = useQuery(graphDocumentQuery(row.id));
  return <Loaded query={document} what="the graph" rows={8}>{(graph) => <Shown row={row} graph={graph} />}</Loaded>;
}

function Shown({ row, graph }: { row: GraphDetail; graph: Graph }) {
  const project = useProjectId();
  const { edit } = useRights(project);
  const navigate = useNavigate();
  const invalidate = useInvalidate();
  const search = useSearch({ from: "/signed-in/projects/$project/graphs/$graph" });
  const stored = useMemo(() => viewOf(row.view), [row.view]);
  const view = useMemo(() => viewFrom(search, stored), [search, stored]);
  const setView = (next: View) => void navigate({ to: ".", search: searchOf(next, stored), replace: true });
  const moved = JSON.stringify(keptOf(view)) !== JSON.stringify(keptOf(stored));
  const keep = useMutation({ mutationFn: () => updateGraph(row, { view: keptOf(view) }), onSuccess: () => invalidate("graphs") });

  return (
    <Page
      title={row.name}
      crumbs={[{ label: "Graphs", to: "/projects/$project/graphs", params: { project } }]}
      lead={<>Where {targetWords(graph, graph.target)} comes from; {row.model_name ?? graph.model}. {row.created_by ?? "–"}, {ago(row.created_at)}.</>}
      actions={
        <Group gap="xs">
          {edit && moved && <Button onClick={() => keep.mutate()} loading={keep.isPending} title="Pins, groups and sliders, for everybody who opens the graph" data-testid="keep-view">Keep this arrangement</Button>}
          {edit && <RenameButton kind="graphs" row={row} />}
          {edit && <Remove row={row} />}
        </Group>
      }
    >
      <ConflictNote error={keep.error} doing="Keeping the arrangement" onReload={() => void invalidate("graphs").then(() => keep.reset())} />
      <Text size="sm" className="mono" style={{ overflowWrap: "anywhere", whiteSpace: "pre-wrap", maxHeight: "5.6em", overflowY: "auto" }} data-testid="graph-prompt" tabIndex={0}>{graph.prompt}</Text>
      <Note row={row} edit={edit} />
      <GraphView project={project} model={row.model} graph={graph} view={view} onView={setView} edit={edit} exports={(drawing) => <ExportMenu graph={graph} name={row.name} drawing={drawing} saved={row.id} />}>
        <Comments graph={row.id} edit={edit} />
      </GraphView>
    </Page>
  );
}

/** A few sentences about the graph, for whoever opens it. */
function Note({ row, edit }: { row: GraphDetail; edit: boolean }) {
  const [text, setText] = useState<string | null>(null);
  const invalidate = useInvalidate();
  const change = useMutation({
    mutationFn: (note: string) => updateGraph(row, { note }),
    onSuccess: async () => {
      await invalidate("graphs");
      setText(null);
    },
  });
  if (text === null) {
    return (
      <Group gap="xs">
        {row.note && <Text size="sm" style={{ whiteSpace: "pre-wrap" }} data-testid="graph-note">{row.note}</Text>}
        {edit && <Button size="compact-sm" variant="subtle" onClick={() => setText(row.note)}>{row.note ? "Change the note" : "Add a note"}</Button>}
      </Group>
    );
  }
  return (
    <div>
      <Textarea label="Note" autosize minRows={2} maxLength={4000} value={text} onChange={(event) => setText(event.currentTarget.value)} data-autofocus />
      <Group gap="xs" mt={4}>
        <Button onClick={() => change.mutate(text)} loading={change.isPending}>Save the note</Button>
        <Button variant="subtle" color="gray" onClick={() => setText(null)}>Leave it</Button>
      </Group>
      <ConflictNote error={change.error} doing="Changing the note" onReload={() => void invalidate("graphs").then(() => setText(null))} />
    </div>
  );
}
