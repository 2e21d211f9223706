import { Switch, Textarea, Text } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { useEffect, useState, type KeyboardEvent } from "react";
import { ErrorNote } from "@/components/ErrorNote";
import { ProbabilityBars } from "@/charts/ProbabilityBars";
import { ScrollX } from "@/components/ScrollX";
import { HeatLegend, TokenHeat } from "@/charts/TokenHeat";
import { LiveBanner } from "@/live/LiveBanner";
import type { LiveSession, LiveState } from "@/live/liveSession";
import { failureError } from "@/live/messages";
import type { EditCard } from "@/patches/plan";
import styles from "./Lab.module.css";
import { ContinuationPanel } from "./ContinuationPanel";
import { Readings } from "./Readings";
import { WhyToken } from "./WhyToken";

interface PromptColumnProps {
  project: string;
  model: string;
  prompt: string;
  onPrompt: (prompt: string) => void;
  session: LiveSession | null;
  live: LiveState;
  edit: boolean;
  selected: EditCard | undefined;
  /** The selected feature's maximum over its recording; null while unknown. */
  scale: number | null;
  onHover: (value: number | null) => void;
}

/** The prompt, where the selected feature fires in it, and the next-token probabilities. */
export function PromptColumn({ project, model, prompt, onPrompt, session, live, edit, selected, scale, onHover }: PromptColumnProps) {
  const rows = live.result?.tokens ?? live.opened?.next ?? [];
  const [text, setText] = useState(prompt);
  // What is shown is about the prompt before, until somebody stops typing and it is answered.
  const typing = live.prompt !== null && text !== live.prompt;
  const stale = live.stale || typing;
  return (
    <section className={styles.column} aria-label="Prompt and probabilities">
      <PromptBox text={text} onText={setText} onPrompt={onPrompt} />
      <LiveBanner model={model} state={live} session={session} edit={edit} />
      {live.failure && <ErrorNote error={failureError(live.failure)} doing="Asking the model" />}
      {live.opened && <Strip live={live} selected={selected} scale={scale} onHover={onHover} />}
      <div className={`panel ${styles.answer}`} data-testid="answer" aria-busy={stale || live.opening}>
        <Text fw={600} size="sm">Next token</Text>
        {rows.length > 0 ? (
          <>
            <Readings live={live} stale={stale} />
            <ScrollX style={{ marginTop: "0.6rem" }}><ProbabilityBars rows={rows} stale={stale} action={(row) => <WhyToken project={project} model={model} prompt={prompt} row={row} rows={rows} />} /></ScrollX>
          </>
        ) : (
          <Text size="sm" c="dimmed">{live.opening ? "Reading the prompt…" : "The probabilities of the next token show here."}</Text>
        )}
      </div>
      {live.opened && <Moved session={session} live={live} />}
      <ContinuationPanel prompt={prompt} session={session} live={live} />
    </section>
  );
}

interface PromptBoxProps {
  text: string;
  onText: (text: string) => void;
  /** The text is final for now. */
  onPrompt: (prompt: string) => void;
}

function PromptBox({ text, onText, onPrompt }: PromptBoxProps) {
  const later = useDebouncedCallback(onPrompt, 600);
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    onPrompt(text);
  };
  return (
    <Textarea
      label="Prompt"
      autosize
      minRows={2}
      maxRows={8}
      value={text}
      onChange={(event) => {
        onText(event.currentTarget.value);
        later(event.currentTarget.value);
      }}
      onKeyDown={onKeyDown}
      data-testid="prompt"
    />
  );
}

interface StripProps {
  live: LiveState;
  selected: EditCard | undefined;
  scale: number | null;
  onHover: (value: number | null) => void;
}

/** The prompt's tokens, coloured by the selected feature. */
function Strip({ live, selected, scale, onHover }: StripProps) {
  const tokens = live.opened?.prompt ?? [];
  const feature = selected && selected.feature.index >= 0 ? selected.feature : undefined;
  const values = feature && live.activations[feature.sae]?.[feature.index];
  const full = scale ?? Math.max(0, ...(values ?? []));
  const leftOut = feature && live.leftOut[feature.sae];
  const spared = tokens.map((token, place) => (leftOut ? leftOut.has(place) : token.special || token.sink));
  const marked = spared.includes(true);
  return (
    <div className="panel" data-testid="token-strip">
      <Text size="xs" c="dimmed">
        {tokens.length} {tokens.length === 1 ? "token" : "tokens"}
        {feature && `, feature ${feature.index}`}
        {marked && "; dotted: special tokens and attention sinks, which edits leave alone"}
      </Text>
      <TokenHeat
        tokens={tokens.map((token, place) => ({ text: token.text, value: values?.[place] ?? 0, sink: spared[place] }))}
        scale={full}
        label={feature ? `Feature ${feature.index} on the prompt` : "Prompt"}
        onHover={onHover}
        testId="prompt-token"
      />
      {feature && full > 0 && <HeatLegend scale={full} />}
    </div>
  );
}

/** How far the plan moves the next-token distribution at every position; asked for only when wanted, since it costs. */
function Moved({ session, live }: { session: LiveSession | null; live: LiveState }) {
  const [wanted, setWanted] = useState(false);
  const answer = live.result;
  useEffect(() => {
    if (wanted && answer) session?.readPositions();
  }, [wanted, session, answer]);
  const kl = live.positions?.kl ?? [];
  const tokens = live.opened?.prompt ?? [];
  const full = Math.max(0, ...kl);
  const stale = live.positions !== null && live.positions.plan !== answer?.receipt.plan;
  return (
    <div className="panel" data-testid="moved-strip" aria-busy={stale}>
      <Switch size="xs" label="KL (base ‖ patched) at every token" checked={wanted} onChange={(event) => setWanted(event.currentTarget.checked)} />
      {wanted && kl.length === tokens.length && (
        <>
          <TokenHeat
            tokens={tokens.map((token, place) => ({ text: token.text, value: kl[place] ?? 0, sink: token.special || token.sink }))}
            scale={full}
            label="KL of the next token at every position, in nats"
            unit=" nats"
            testId="moved-token"
          />
          {full > 0 ? <HeatLegend scale={full} /> : <Text size="xs" c="dimmed">Nothing moves.</Text>}
        </>
      )}
    </div>
  );
}
