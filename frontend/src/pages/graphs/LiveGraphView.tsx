import { Button, Group, MultiSelect, NumberInput, Progress, Text, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useEffect, useMemo, useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { createGraph, saveGraph, updateGraph } from "@/api/graphs";
import type { Model, Sae } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import type { NewGraphSearch } from "@/app/search";
import { ErrorNote } from "@/components/ErrorNote";
import { canTakePart, usualSaes } from "@/graphs/saes";
import type { Graph, GraphTarget } from "@/graphs/types";
import { keptOf, PLAIN, searchOf, viewFrom, type GraphView as View } from "@/graphs/view";
import { targetWords } from "@/graphs/words";
import { answeredWhole, graphProgress, keptGraph, type GraphQuestion, type LiveGraph } from "@/live/graph";
import type { LiveSession, LiveState } from "@/live/liveSession";
import { siteName } from "@/science/sites";
import { ExportMenu } from "./ExportMenu";
import { GraphView } from "./GraphView";
import { MissingSaes } from "./MissingSaes";

const SIZES = { hops: 2, parents: 8, shown: 40 };

interface LiveGraphViewProps {
  project: string;
  model: Model;
  saes: readonly Sae[];
  session: LiveSession | null;
  live: LiveState;
  target: GraphTarget;
  search: NewGraphSearch;
  onSearch: (part: Partial<NewGraphSearch>, replace?: boolean) => void;
  edit: boolean;
}

/** A graph that a live session makes: it fills in while the model works. */
export function LiveGraphView({ project, model, saes, session, live, target, search, onSearch, edit }: LiveGraphViewProps) {
  const chosen = useMemo(() => (search.saes ? saes.filter((sae) => search.saes!.includes(sae.fingerprint)) : usualSaes(saes, target)), [search.saes, saes, target]);
  const { hops = SIZES.hops, parents = SIZES.parents, shown = SIZES.shown } = search;
  const asked = JSON.stringify({ target, saes: chosen.map((sae) => sae.fingerprint), hops, parents, shown, verify: true } satisfies GraphQuestion);
  const opened = live.opened?.session;
  useEffect(() => {
    const question = JSON.parse(asked) as GraphQuestion;
    if (opened && session && !answeredWhole(session.store.value.graph, question)) session.readProvenance(question);
  }, [session, opened, asked]);
  const { graph: found } = live;
  const graph = found?.graph ?? null;
  const view = useMemo(() => viewFrom(search, PLAIN), [search]);
  const setView = (next: View) => onSearch(searchOf(next), true);
  const name = graph ? `Why ${targetWords(graph, target)}` : "graph";
  return (
    <>
      <Group gap="xs" justify="space-between">
        <Text size="sm" fw={600}>{graph ? `Where ${targetWords(graph, target)} comes from` : "Where it comes from"}</Text>
        <Button variant="default" onClick={() => onSearch({ target: undefined, node: undefined, edge: undefined, pins: undefined, groups: undefined })} data-testid="another-target">Another target</Button>
      </Group>
      <Underway graph={found} onStop={() => session?.stopProvenance()} onAgain={() => session?.readProvenance(JSON.parse(asked) as GraphQuestion)} />
      <MissingSaes project={project} model={model} saes={saes} target={target} edit={edit} />
      <Choices saes={saes} chosen={chosen} sizes={{ hops, parents, shown }} onSearch={onSearch} />
      {graph && (
        <>
          {edit && found?.ended != null && <SaveGraph key={asked} project={project} model={model.id} graph={keptGraph(found)!} view={view} suggested={name} />}
          <GraphView project={project} model={model.id} graph={graph} view={view} onView={setView} edit={edit} live={{ session, state: live }} exports={(drawing) => <ExportMenu graph={graph} name={name} drawing={drawing} />} />
        </>
      )}
      {!graph && edit && live.failure && <InAJob project={project} model={model.id} prompt={live.prompt ?? ""} target={target} saes={chosen} sizes={{ hops, parents, shown }} />}
    </>
  );
}

function Underway({ graph, onStop, onAgain }: { graph: LiveGraph | null; onStop: () => void; onAgain: () => void }) {
  if (!graph) return null;
  const running = graph.ended === null;
  return (
    <Group gap="sm" data-testid="graph-progress" data-ended={graph.ended ?? ""} data-phase={graph.phase ?? ""}>
      <Text size="sm" role="status">{graphProgress(graph)}</Text>
      {running && <Progress w={120} size="sm" animated value={graph.total > 0 ? (100 * graph.done) / graph.total : 100} aria-label="Progress" />}
      {running ? <Button size="compact-sm" variant="default" onClick={onStop} data-testid="graph-stop">Stop</Button> : graph.ended !== "done" && <Button size="compact-sm" variant="default" onClick={onAgain}>Again</Button>}
    </Group>
  );
}

type Sizes = typeof SIZES;

interface ChoicesProps {
  saes: readonly Sae[];
  chosen: readonly Sae[];
  sizes: Sizes;
  onSearch: (part: Partial<NewGraphSearch>, replace?: boolean) => void;
}

/** Which SAEs take part and how far back to look; a change starts over. */
function Choices({ saes, chosen, sizes, onSearch }: ChoicesProps) {
  const possible = saes.filter(canTakePart);
  const field = (part: keyof Sizes, label: string, max: number) => (
    <NumberInput size="xs" w={150} label={label} min={1} max={max} allowDecimal={false} clampBehavior="strict" value={sizes[part]} onChange={(value) => typeof value === "number" && value >= 1 && onSearch({ [part]: value }, true)} />
  );
  return (
    <details>
      <summary style={{ fontSize: "0.8125rem" }}>{chosen.length === 1 ? "1 SAE" : `${chosen.length} SAEs`}, {sizes.hops === 1 ? "1 hop" : `${sizes.hops} hops`} back</summary>
      <Group gap="sm" align="flex-end" mt={6}>
        {possible.length > 0 && (
          <MultiSelect
            size="xs"
            w={360}
            maw="100%"
            label="SAEs whose features take part"
            description="One for each site."
            data={possible.map((sae) => ({ value: sae.fingerprint, label: `${sae.name} (${siteName({ kind: sae.site, layer: sae.layer })})` }))}
            value={chosen.map((sae) => sae.fingerprint)}
            onChange={(value) => onSearch({ saes: value }, true)}
          />
        )}
        {field("hops", "Hops", 12)}
        {field("parents", "Parents explained further", 64)}
        {field("shown", "Edges kept", 2000)}
      </Group>
    </details>
  );
}

interface SaveGraphProps {
  project: string;
  model: string;
  graph: Graph;
  view: View;
  suggested: string;
}

/** Keeps the graph in the project, with what is pinned and grouped. */
function SaveGraph({ project, model, graph, view, suggested }: SaveGraphProps) {
  const [name, setName] = useState(suggested.slice(0, 120));
  const navigate = useNavigate();
  const invalidate = useInvalidate();
  const save = useMutation({
    mutationFn: async () => {
      const made = await saveGraph(model, name.trim(), graph);
      return await updateGraph(made, { view: keptOf(view) });
    },
    onSuccess: async (made) => {
      await invalidate("graphs", "lineage");
      await navigate({ to: "/projects/$project/graphs/$graph", params: { project, graph: made.id }, search: { node: view.node ?? undefined, edge: view.edge ?? undefined } });
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    save.mutate();
  };
  return (
    <form onSubmit={submit} className="panel">
      <Group gap="xs" align="flex-end">
        <TextInput size="xs" flex={1} miw={200} label="Name" required maxLength={120} value={name} onChange={(event) => setName(event.currentTarget.value)} error={save.error ? asApiError(save.error).about("name") : undefined} data-testid="graph-name" />
        <Button type="submit" loading={save.isPending} disabled={!name.trim()} data-testid="graph-save">Save in the project</Button>
      </Group>
      <ErrorNote error={save.error} doing="Saving the graph" shownElsewhere={["name"]} />
    </form>
  );
}

interface InAJobProps {
  project: string;
  model: string;
  prompt: string;
  target: GraphTarget;
  saes: readonly Sae[];
  sizes: Sizes;
}

/** The same as a job, which waits for a machine with room. */
function InAJob({ project, model, prompt, target, saes, sizes }: InAJobProps) {
  const navigate = useNavigate();
  const invalidate = useInvalidate();
  const start = useMutation({
    mutationFn: () => createGraph({ model, name: `Graph of ${new Date().toLocaleString()}`, prompt, target, saes: saes.map((sae) => sae.id), ...sizes, verify: true }),
    onSuccess: async ({ graph }) => {
      await invalidate("graphs", "jobs");
      await navigate({ to: "/projects/$project/graphs/$graph", params: { project, graph: graph.id } });
    },
  });
  return (
    <Group gap="sm">
      <Button variant="default" onClick={() => start.mutate()} loading={start.isPending}>Compute it in a job instead</Button>
      <ErrorNote error={start.error} doing="Starting the job" />
    </Group>
  );
}
