import { Button, Group, Select, Stack, Text, Title } from "@mantine/core";
import { useEffect } from "react";
import { ErrorNote } from "@/components/ErrorNote";
import { Facts } from "@/components/Facts";
import { ScrollX } from "@/components/ScrollX";
import type { Attended, Contributor, Graph } from "@/graphs/types";
import { moduleWords, sameTokens, tokenAt } from "@/graphs/words";
import { LiveBanner } from "@/live/LiveBanner";
import { useLiveSession } from "@/live/hooks";
import type { LiveSession, LiveState } from "@/live/liveSession";
import { failureError } from "@/live/messages";
import { number, percent } from "@/science/format";
import styles from "./Graphs.module.css";
import { SignedBars } from "./SignedBars";

export interface AttentionAt {
  layer: number;
  head: number;
  query: number;
  key: number;
}

interface AttendedPanelProps {
  graph: Graph;
  at: AttentionAt;
  onAt: (at: AttentionAt) => void;
  onClose: () => void;
  edit: boolean;
  model: string;
}

/** Why a head attends, asked of a session of its own on the graph's prompt. */
export function AttendedOfPrompt(props: AttendedPanelProps) {
  const [session, live] = useLiveSession(props.model);
  const { prompt } = props.graph;
  useEffect(() => session?.open(prompt), [session, prompt]);
  return (
    <AttendedPanel {...props} session={session} live={live} />
  );
}

/** Why a head attends from one token to another: what the query and the key are made of, and which pairs meet. */
export function AttendedPanel({ graph, at, onAt, onClose, edit, model, session, live }: AttendedPanelProps & { session: LiveSession | null; live: LiveState }) {
  const { layer, head, query, key } = at;
  const opened = live.opened?.session;
  const alike = !live.opened || sameTokens(graph.tokens, live.opened.prompt);
  useEffect(() => {
    // SAEs behind the head's block are no contributors to it.
    const below = graph.saes.filter((sae) => layerOf(sae.site_out) < layer).map((sae) => sae.fingerprint);
    if (opened && alike) session?.readAttended({ layer, head, query, key }, below);
  }, [session, opened, alike, layer, head, query, key, graph.saes]);
  const tokens = graph.tokens.map((_, place) => ({ value: String(place), label: tokenAt(graph, place) }));
  const answer = live.attended;
  const fits = answer?.layer === layer && answer.head === head && answer.query === query && answer.key === key;
  return (
    <Stack gap="xs" className="panel" data-testid="attended" data-ready={fits} aria-busy={alike && !fits && !live.failure}>
      <Group justify="space-between" wrap="nowrap">
        <Title order={2}>Why head {layer}.{head} attends</Title>
        <Button size="compact-sm" variant="subtle" color="gray" onClick={onClose}>Close</Button>
      </Group>
      <Group gap="xs" grow>
        <Select size="xs" label="From" data={tokens} value={String(query)} onChange={(value) => value !== null && onAt({ ...at, query: Number(value) })} />
        <Select size="xs" label="To" data={tokens.slice(0, query + 1)} value={String(key)} onChange={(value) => value !== null && onAt({ ...at, key: Number(value) })} />
      </Group>
      {!opened && <LiveBanner model={model} state={live} session={session} edit={edit} />}
      {live.failure && <ErrorNote error={failureError(live.failure)} doing="Asking the model" />}
      {!alike ? <Text size="sm" role="alert">The model reads this prompt as other tokens than the graph’s, so that its positions mean something else here.</Text> : fits ? <Answer answer={answer} /> : !live.failure && <Text size="sm" c="dimmed">Splitting the score…</Text>}
    </Stack>
  );
}

const layerOf = (site: string) => Number(site.split(".").at(-1));

const words = (one: Contributor) => (one.kind === "bias" ? "bias" : moduleWords(one));

function Answer({ answer }: { answer: Attended }) {
  const { query_contributors: queries, key_contributors: keys, pairs } = answer;
  const rows = (list: Contributor[]) => list.slice(0, 10).map((one, place) => ({ key: String(place), label: words(one), value: one.attribution }));
  return (
    <>
      <Facts
        facts={[
          { label: "Score", value: number(answer.score), title: "in front of the softmax" },
          { label: "Attention", value: percent(answer.weight), title: "what the softmax makes of it" },
          { label: "By content", value: number(answer.bilinear), title: "what the pairs below, all of them, sum to" },
          ...(answer.position_term === 0 ? [] : [{ label: "By distance", value: number(answer.position_term) }]),
        ]}
      />
      <Text size="xs" fw={600}>Looking for: what the query is made of</Text>
      <SignedBars label="Query contributors" rows={rows(queries)} testId="query-contributors" />
      <Text size="xs" fw={600}>Offering: what the key is made of</Text>
      <SignedBars label="Key contributors" rows={rows(keys)} testId="key-contributors" />
      <Text size="xs" fw={600}>Pairs that meet</Text>
      <ScrollX>
        <table className={styles.edges} aria-label="Pairs of contributors">
          <thead><tr><th scope="col">query</th><th scope="col">key</th><th scope="col">score</th></tr></thead>
          <tbody>
            {pairs.slice(0, 12).map((pair, place) => {
              const [from, to] = [queries[pair.query], keys[pair.key]];
              return from && to && <tr key={place}><td>{words(from)}</td><td>{words(to)}</td><td className={styles.number}>{number(pair.attribution)}</td></tr>;
            })}
          </tbody>
        </table>
      </ScrollX>
    </>
  );
}
