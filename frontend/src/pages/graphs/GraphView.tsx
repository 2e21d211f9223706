import { Text } from "@mantine/core";
import { useCallback, useMemo, useState, type ReactNode } from "react";
import { folded, type DrawnEdge, type DrawnNode } from "@/graphs/fold";
import { automaticGroups } from "@/graphs/groups";
import { layout } from "@/graphs/layout";
import type { Graph } from "@/graphs/types";
import { toggleGroup, togglePin, withGroup, withoutGroup, type GraphView as View } from "@/graphs/view";
import { drawnWords, shortWords, verdictWords } from "@/graphs/words";
import type { LiveSession, LiveState } from "@/live/liveSession";
import { tokenLabel } from "@/science/tokens";
import { number } from "@/science/format";
import { AttendedOfPrompt, AttendedPanel, type AttentionAt } from "./AttendedPanel";
import { Components } from "./Components";
import { Controls, type Look } from "./Controls";
import { EdgePanel } from "./EdgePanel";
import { EdgeTable } from "./EdgeTable";
import { Figures } from "./Figures";
import styles from "./Graphs.module.css";
import { NodePanel } from "./NodePanel";
import { Picture } from "./Picture";
import { GroupsPanel, PinnedPanel } from "./PinnedPanel";
import { useNames } from "./useNames";

interface GraphViewProps {
  project: string;
  /** The portal's id of the model; null for a graph of a model that is not here. */
  model: string | null;
  graph: Graph;
  view: View;
  onView: (view: View) => void;
  edit: boolean;
  /** The session that made the graph, when it is a live one. */
  live?: { session: LiveSession | null; state: LiveState };
  /** More beside the picture. */
  children?: ReactNode;
  /** Called with what is drawn, for exports. */
  exports: (drawing: Drawing) => ReactNode;
}

export interface Drawing {
  picture: ReturnType<typeof layout>;
  heads: string[];
  pinned: ReadonlySet<string>;
  names: ReadonlyMap<string, string>;
}

const bySize = (edges: readonly DrawnEdge[]) => [...edges].sort((a, b) => Math.abs(b.attribution) - Math.abs(a.attribution));

/** A graph: its figures, the picture or a table, and what is known of the selected node or edge. */
export function GraphView({ project, model, graph, view, onView, edit, live, children, exports }: GraphViewProps) {
  const [look, setLook] = useState<Look>("picture");
  const [marks, setMarks] = useState<string[]>([]);
  const [room, setRoom] = useState(0);
  const [attending, setAttending] = useState<AttentionAt | null>(null);
  const names = useNames(project, graph);
  const drawn = useMemo(() => folded(graph, view.groups), [graph, view.groups]);
  const byId = useMemo(() => new Map(drawn.nodes.map((node) => [node.id, node])), [drawn]);
  const pinned = useMemo(() => {
    const pins = new Set(view.pins);
    return new Set(drawn.nodes.filter((node) => node.members.every(({ id }) => pins.has(id))).map(({ id }) => id));
  }, [drawn, view.pins]);
  const shortNames = useMemo(() => new Map(drawn.nodes.map((node) => [node.id, names.names.get(node.members[0]!.id) ?? ""])), [drawn, names.names]);
  const { least, most } = view;
  const picture = useMemo(() => layout(drawn, graph.tokens.length, { least, most }, pinned, names.names.size > 0 ? room : 0), [drawn, graph.tokens.length, least, most, pinned, names.names.size, room]);
  const heads = useMemo(() => picture.columns.map(({ position }) => (position === null ? "no token" : tokenLabel(graph.tokens[position]?.text ?? "?"))), [picture, graph.tokens]);
  const marked = useMemo(() => new Set(marks.map((id) => drawn.place.get(id) ?? id)), [marks, drawn]);
  const edges = useMemo(() => bySize(drawn.edges), [drawn]);
  const widest = useMemo(() => Math.max(1, ...countInto(drawn.edges)), [drawn]);

  const wordsOf = useCallback(
    (id: string): string => {
      const node = byId.get(drawn.place.get(id) ?? id);
      if (!node) return id;
      const name = shortNames.get(node.id);
      return `${drawnWords(graph, node)}${name ? ` (${name})` : ""}`;
    },
    [byId, drawn, graph, shortNames],
  );
  const nameOf = useCallback(
    (id: string): [string, string] => {
      const node = byId.get(drawn.place.get(id) ?? id);
      return node ? shortWords(graph, node, shortNames.get(node.id) ?? "") : [id, ""];
    },
    [byId, drawn, graph, shortNames],
  );
  const say = (hit: { node: string } | { edge: DrawnEdge }) => {
    if ("node" in hit) return wordsOf(hit.node);
    const [first] = hit.edge.edges as [DrawnEdge["edges"][number]];
    const more = hit.edge.edges.length > 1 ? ` and ${hit.edge.edges.length - 1} more` : "";
    return `${wordsOf(hit.edge.from)} → ${wordsOf(hit.edge.to)}: ${number(hit.edge.attribution)}${more}; ${verdictWords(first)}`;
  };

  const goTo = (id: string | null) => onView({ ...view, node: id && (drawn.place.get(id) ?? id), edge: null });
  const goToEdge = (edge: DrawnEdge) => onView({ ...view, node: null, edge: edge.key });
  const membersOf = (id: string) => (byId.get(id)?.members ?? []).map((member) => member.id);
  const pin = (id: string) => onView(togglePin(view, membersOf(id)));
  const mark = (id: string) => {
    const members = membersOf(id);
    setMarks((now) => (now.includes(members[0] ?? "") ? now.filter((one) => !members.includes(one)) : [...now, ...members]));
  };
  const node: DrawnNode | undefined = view.node ? byId.get(drawn.place.get(view.node) ?? view.node) : undefined;
  const edge = view.edge ? drawn.edges.find(({ key }) => key === view.edge) : undefined;

  return (
    <>
      <Figures graph={graph} saeName={(fingerprint) => names.saeOf(fingerprint)?.name} />
      <Controls view={view} onView={onView} look={look} onLook={setLook} drawn={picture.curves.length} all={drawn.edges.length} widest={widest} />
      <div className={styles.wide}>
        <div className={styles.main}>
          {look === "picture" ? (
            <Picture
              picture={picture} heads={heads} names={shortNames} pinned={pinned} marked={marked} node={node?.id ?? null} edge={edge?.key ?? null} say={say}
              onNode={goTo} onEdge={goToEdge} onPin={pin} onMark={mark} onOpen={() => document.getElementById("graph-detail")?.focus()} onRoom={setRoom}
            />
          ) : (
            <div className="panel"><EdgeTable label="Every edge, the largest first" edges={edges} ends="both" nameOf={nameOf} onNode={goTo} onEdge={goToEdge} rows={50} /></div>
          )}
          {exports({ picture, heads, pinned, names: shortNames })}
        </div>
        <div className={styles.columns}>
          <section className={styles.side} aria-label="Details">
            {attending && model && (live ? (
              <AttendedPanel graph={graph} at={attending} onAt={setAttending} onClose={() => setAttending(null)} edit={edit} model={model} session={live.session} live={live.state} />
            ) : (
              <AttendedOfPrompt graph={graph} at={attending} onAt={setAttending} onClose={() => setAttending(null)} edit={edit} model={model} />
            ))}
            {node ? (
              <NodePanel
                project={project} model={model} graph={graph} node={node} names={names} nameOf={nameOf}
                incoming={edges.filter(({ to }) => to === node.id)} outgoing={edges.filter(({ from }) => from === node.id)}
                pinned={pinned.has(node.id)} marked={marked.has(node.id)} onNode={goTo} onEdge={goToEdge} onPin={() => pin(node.id)} onMark={() => mark(node.id)}
              />
            ) : edge ? (
              <EdgePanel graph={graph} edge={edge} onNode={goTo} onAttended={model ? setAttending : undefined} />
            ) : (
              <Text size="sm" c="dimmed" className="panel">Select a node or an edge: by pointer, or with the arrow keys.</Text>
            )}
          </section>
          <section className={styles.side} aria-label="Pins, groups and comments">
            <PinnedPanel
              graph={graph} pins={view.pins} wordsOf={wordsOf} onNode={goTo} onClear={() => onView({ ...view, pins: [] })}
              onPinShown={() => onView({ ...view, pins: picture.boxes.flatMap((box) => box.node.members.map(({ id }) => id)) })}
            />
            <GroupsPanel
              groups={view.groups} marked={marks}
              onAdd={(name) => {
                onView(withGroup(view, { name, nodes: marks, closed: false }));
                setMarks([]);
              }}
              onUnmark={() => setMarks([])}
              onToggle={(name) => onView(toggleGroup(view, name))}
              onRemove={(name) => onView(withoutGroup(view, name))}
              onAutomatic={() => onView(automaticGroups(graph, names.names).reduce(withGroup, view))}
            />
            <Components graph={graph} onAttended={model ? setAttending : undefined} />
            {children}
          </section>
        </div>
      </div>
    </>
  );
}

/** How many parents each node has. */
function countInto(edges: readonly DrawnEdge[]): Iterable<number> {
  const counts = new Map<string, number>();
  for (const { to } of edges) counts.set(to, (counts.get(to) ?? 0) + 1);
  return counts.values();
}
