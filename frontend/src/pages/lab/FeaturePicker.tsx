import { SegmentedControl, Select, Stack, Text, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useEffect, useState, type RefObject } from "react";
import { featureAtQuery, featureMatchesQuery } from "@/api/features";
import type { Feature, Sae } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { strongestFirst, type LiveSession, type LiveState } from "@/live/liveSession";
import { number } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./Lab.module.css";

interface FeaturePickerProps {
  saes: readonly Sae[];
  session: LiveSession | null;
  live: LiveState;
  search: RefObject<HTMLInputElement | null>;
  onPick: (feature: Feature) => void;
}

const COUNT = 30;

/** Finds a feature by text, index, or because it fires on the prompt. */
export function FeaturePicker({ saes, session, live, search, onPick }: FeaturePickerProps) {
  const [saeId, setSae] = useState<string | null>(null);
  const [way, setWay] = useState<"prompt" | "search">("prompt");
  const sae = saes.find((one) => one.id === saeId) ?? saes[0];
  if (!sae) return <Text size="sm" c="dimmed">No SAE of this model has been analysed yet: train one, then analyse its features.</Text>;
  return (
    <Stack gap="xs" className="panel" data-testid="feature-picker">
      <Text fw={600} size="sm">Add a feature</Text>
      {saes.length > 1 && (
        <Select size="xs" aria-label="SAE" data={saes.map((one) => ({ value: one.id, label: `${one.name} (${one.site}.${one.layer})` }))} value={sae.id} onChange={setSae} />
      )}
      <SegmentedControl
        size="xs"
        aria-label="How to find it"
        value={way}
        onChange={(value) => setWay(value)}
        data={[{ value: "prompt", label: "firing on the prompt" }, { value: "search", label: "search" }]}
      />
      <TextInputSearch sae={sae} visible={way === "search"} search={search} onShow={() => setWay("search")} onPick={onPick} />
      {way === "prompt" && <OnPrompt sae={sae} session={session} live={live} onPick={onPick} />}
    </Stack>
  );
}

interface SearchProps {
  sae: Sae;
  visible: boolean;
  search: RefObject<HTMLInputElement | null>;
  onShow: () => void;
  onPick: (feature: Feature) => void;
}

/** Search by label, token or index. The box is always there, so that "/" always has a place to go. */
function TextInputSearch({ sae, visible, search, onShow, onPick }: SearchProps) {
  const [text, setText] = useState("");
  const [settled] = useDebouncedValue(text.trim(), 200);
  const byIndex = /^\d+$/.test(settled);
  const found = useQuery({
    ...featureMatchesQuery(
      byIndex
        ? { sae: sae.id, index: Number(settled), page_size: COUNT }
        : { sae: sae.id, search: settled || undefined, dead: false, ordering: "-max_activation", page_size: COUNT },
    ),
    enabled: visible,
    placeholderData: keepPreviousData,
  });
  return (
    <>
      <TextInput
        ref={search}
        size="xs"
        type="search"
        placeholder="label, token, or index ( / )"
        aria-label="Search features by label, token or index"
        value={text}
        onFocus={onShow}
        onChange={(event) => setText(event.currentTarget.value)}
        data-testid="picker-search"
      />
      {visible && (
        <>
          <ErrorNote error={found.error} doing="Searching" />
          {found.data?.length === 0 && <Text size="xs" c="dimmed">No feature matches.</Text>}
          <ul className={styles.matches} aria-label="Matching features">
            {(found.data ?? []).map((feature) => (
              <li key={feature.id}><Match feature={feature} value={feature.max_activation} meaning="maximum" onPick={onPick} /></li>
            ))}
          </ul>
        </>
      )}
    </>
  );
}

interface OnPromptProps {
  sae: Sae;
  session: LiveSession | null;
  live: LiveState;
  onPick: (feature: Feature) => void;
}

function OnPrompt({ sae, session, live, onPick }: OnPromptProps) {
  const opened = live.opened?.session;
  useEffect(() => {
    if (session && opened) session.readStrongest(sae.fingerprint, COUNT);
  }, [session, opened, sae.fingerprint]);
  const known = live.activations[sae.fingerprint];
  if (!known) return <Text size="xs" c="dimmed">{opened ? "Reading the features…" : "Shown once the model answers."}</Text>;
  return (
    <ul className={styles.matches} aria-label="Features that fire on the prompt, strongest first">
      {strongestFirst(known).slice(0, COUNT).map((feature) => (
        <li key={feature.index}><FiringMatch sae={sae} index={feature.index} strongest={feature.strongest} onPick={onPick} /></li>
      ))}
    </ul>
  );
}

function FiringMatch({ sae, index, strongest, onPick }: { sae: Sae; index: number; strongest: number; onPick: (feature: Feature) => void }) {
  const { data } = useQuery(featureAtQuery(sae.id, index));
  return data ? <Match feature={data} value={strongest} meaning="on this prompt" onPick={onPick} /> : <span className={styles.match}>{index}</span>;
}

interface MatchProps {
  feature: Feature;
  value: number;
  meaning: string;
  onPick: (feature: Feature) => void;
}

function Match({ feature, value, meaning, onPick }: MatchProps) {
  const tokens = feature.top_tokens.slice(0, 6).map(tokenLabel).join(" ");
  return (
    <button type="button" className={styles.match} onClick={() => onPick(feature)} data-testid="picker-match" data-index={feature.index} title={`Add feature ${feature.index}`}>
      <span>{feature.index}</span>
      <span className={styles.clip}>{feature.label || <span className="mono">{tokens}</span>}</span>
      <span title={meaning}>{number(value, 2)}</span>
    </button>
  );
}
