import { Button, Group, Stack, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { featureAtQuery, featureQuery } from "@/api/features";
import { Facts } from "@/components/Facts";
import { LinkButton } from "@/components/LinkButton";
import { TextLink } from "@/components/TextLink";
import { TokenHeat } from "@/charts/TokenHeat";
import type { DrawnEdge, DrawnNode } from "@/graphs/fold";
import type { Account, Graph, GraphNode } from "@/graphs/types";
import { counted, drawnWords, nodeWords, positionOf } from "@/graphs/words";
import { fixed, number, percent } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import { EdgeTable } from "./EdgeTable";
import type { Names } from "./useNames";

interface NodePanelProps {
  project: string;
  /** The portal's id of the model, when it has it. */
  model: string | null;
  graph: Graph;
  node: DrawnNode;
  incoming: readonly DrawnEdge[];
  outgoing: readonly DrawnEdge[];
  names: Names;
  pinned: boolean;
  marked: boolean;
  nameOf: (id: string) => [what: string, where: string];
  onNode: (id: string) => void;
  onEdge: (edge: DrawnEdge) => void;
  onPin: () => void;
  onMark: () => void;
}

/** What is known of a node, what contributes to it, and what it contributes to. */
export function NodePanel({ project, model, graph, node, incoming, outgoing, names, pinned, marked, nameOf, onNode, onEdge, onPin, onMark }: NodePanelProps) {
  const [top] = node.members as [GraphNode, ...GraphNode[]];
  const accounts = graph.accounts.filter((account) => node.members.some((member) => member.id === account.node));
  return (
    <Stack gap="sm" className="panel" data-testid="node-panel" data-node={node.id}>
      <div>
        <Title order={2} tabIndex={-1} id="graph-detail" style={{ overflowWrap: "anywhere" }}>{capital(drawnWords(graph, node))}</Title>
        <Group gap={6} mt={4}>
          <Button variant={pinned ? "filled" : "default"} aria-pressed={pinned} onClick={onPin} title="Pin (p)" data-testid="pin">{pinned ? "Pinned" : "Pin"}</Button>
          {top.kind !== "target" && node.group === null && <Button variant={marked ? "filled" : "default"} aria-pressed={marked} onClick={onMark} title="Mark for a group (m, or Shift and click)" data-testid="mark">{marked ? "Marked" : "Mark"}</Button>}
          {top.kind === "feature" && node.group === null && model && <FeatureLinks project={project} model={model} graph={graph} node={top} names={names} />}
        </Group>
      </div>
      {node.group === null ? <About graph={graph} node={node} names={names} project={project} /> : (
        <ul style={{ margin: 0, paddingLeft: "1.1rem", fontSize: "0.8125rem" }}>{node.members.map((member) => <li key={member.id}>{nodeWords(graph, member)} {names.names.get(member.id)}</li>)}</ul>
      )}
      {accounts.map((account) => <AccountFacts key={`${account.node} ${account.side}`} account={account} />)}
      {incoming.length > 0 && (
        <div>
          <Text size="xs" fw={600}>{counted(incoming.length, "contribution")} to it</Text>
          <EdgeTable label="What contributes to it" edges={incoming} ends="from" nameOf={nameOf} onNode={onNode} onEdge={onEdge} />
        </div>
      )}
      {outgoing.length > 0 && (
        <div>
          <Text size="xs" fw={600}>What it contributes to</Text>
          <EdgeTable label="What it contributes to" edges={outgoing} ends="to" nameOf={nameOf} onNode={onNode} onEdge={onEdge} />
        </div>
      )}
    </Stack>
  );
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** What the portal knows of a node's feature. Asked here too: large graphs do not ask for all of theirs. */
function useFeature(names: Names, node: GraphNode) {
  const sae = node.kind === "feature" ? names.saeOf(node.sae) : undefined;
  const enabled = sae !== undefined && node.index !== null;
  const { data, isPending, error } = useQuery({ ...featureAtQuery(sae?.id ?? "", node.index ?? 0), enabled });
  return { row: data ?? undefined, missing: !enabled ? "Its SAE is not in this project." : error ? "Its feature could not be loaded." : isPending ? "…" : "Its SAE’s features were not analysed." };
}

/** To the patch lab with this feature ablated at this token, and to a graph of this feature. */
function FeatureLinks({ project, model, graph, node, names }: { project: string; model: string; graph: Graph; node: GraphNode; names: Names }) {
  const { row: feature } = useFeature(names, node);
  const sae = names.saeOf(node.sae);
  if (!sae || node.position === null || node.index === null) return null;
  const target = { kind: "feature" as const, sae: node.sae, index: node.index, position: positionOf(graph, node.position) };
  return (
    <>
      {feature && (
        <LinkButton variant="default" to="/projects/$project/lab" params={{ project }} search={{ model, prompt: graph.prompt, add: feature.id, at: node.position }} title="Opens the patch lab with this feature ablated at this token" data-testid="node-to-lab">Patch it</LinkButton>
      )}
      <LinkButton variant="default" to="/projects/$project/graphs/new" params={{ project }} search={{ model, prompt: graph.prompt, target }} title="A graph of this feature at this token" data-testid="node-to-graph">Explain it</LinkButton>
    </>
  );
}

const EXPLAINED: Partial<Record<GraphNode["kind"], string>> = {
  error: "What the SAE leaves over of the stream at this token: no feature stands for it. Where much of a graph comes from errors, the SAE misses much of what matters.",
  bias: "The decoder's own constant: the same at every token and for every prompt.",
  embedding: "The token itself, before any block.",
};

function About({ project, graph, node, names }: { project: string; graph: Graph; node: DrawnNode; names: Names }) {
  const [top] = node.members as [GraphNode];
  const { row, missing } = useFeature(names, top);
  if (top.kind === "target") return <Text size="sm">What is explained. Its value is {number(top.value)}.</Text>;
  if (top.kind !== "feature") return <Text size="sm" c="dimmed">{EXPLAINED[top.kind] ?? nodeWords(graph, top)}</Text>;
  return (
    <>
      {row ? (
        <div>
          <TextLink to="/projects/$project/features/$feature" params={{ project, feature: row.id }} fw={600} data-testid="node-feature">{row.label || `Feature ${row.index}`}</TextLink>
          <Text size="xs" c="dimmed" ff="monospace" style={{ overflowWrap: "anywhere" }}>{row.top_tokens.slice(0, 8).map(tokenLabel).join(" ")}</Text>
        </div>
      ) : (
        <Text size="xs" c="dimmed">{missing}</Text>
      )}
      <Facts
        facts={[
          { label: "Activation", value: number(top.activation) },
          { label: "Pre-activation", value: number(top.value), title: "what its own contributions explain" },
          ...(node.from < node.layer ? [{ label: "Carried", value: `from block ${node.from} to ${node.layer}`, title: "the same direction, found again by SAEs higher up" }] : []),
        ]}
      />
      {row && <StrongestExample id={row.id} />}
    </>
  );
}

/** Where the feature fires most, of what it was analysed on. */
function StrongestExample({ id }: { id: string }) {
  const { data } = useQuery(featureQuery(id));
  const example = data?.details.examples[0];
  if (!example) return null;
  return <TokenHeat tokens={example.texts.map((text, at) => ({ text, value: example.values[at] ?? 0 }))} scale={data.details.max_activation} peak={example.peak} label="Strongest example" testId="node-token" />;
}

/** How what reaches a node adds up. */
function AccountFacts({ account }: { account: Account }) {
  const wanted = account.value - account.constant;
  const share = (part: number) => (wanted === 0 ? "–" : percent(part / wanted));
  const found = account.features + account.errors + account.biases + account.modules;
  return (
    <Facts
      facts={[
        { label: account.side ? `To explain, ${account.side}` : "To explain", value: number(wanted), title: `its value ${number(account.value)} less ${number(account.constant)} that no parent could change` },
        { label: "Features", value: share(account.features) },
        { label: "Errors", value: share(account.errors) },
        { label: "Constants", value: share(account.biases + account.modules) },
        { label: "Completeness", value: wanted === 0 ? "–" : fixed(found / wanted, 4), title: "1 when the contributions add up to what is to be explained" },
        { label: "Drawn", value: share(account.shown), title: "by the edges of this graph" },
      ]}
    />
  );
}
