import { Button, Group, Stack, Text, Textarea } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useState, type SyntheticEvent } from "react";
import { featureAtQuery } from "@/api/features";
import type { Sae } from "@/api/types";
import { useRights } from "@/app/project";
import { ErrorNote } from "@/components/ErrorNote";
import { TextLink } from "@/components/TextLink";
import { TokenHeat } from "@/charts/TokenHeat";
import { useLiveSession } from "@/live/hooks";
import { LiveBanner } from "@/live/LiveBanner";
import { strongestFirst } from "@/live/liveSession";
import { failureError, type PromptToken } from "@/live/messages";
import { number } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./Features.module.css";

const SHOWN = 25;

interface FiringOnPromptProps {
  sae: Sae;
  prompt: string | undefined;
  onPrompt: (prompt: string) => void;
}

/** "Which features fire on this text?", answered by the live model. */
export function FiringOnPrompt({ sae, prompt, onPrompt }: FiringOnPromptProps) {
  const [text, setText] = useState(prompt ?? "");
  const [session, live] = useLiveSession(prompt ? sae.model : undefined);
  const { edit } = useRights(sae.project);
  const found = live.activations[sae.fingerprint];
  useEffect(() => {
    if (session && prompt) {
      session.open(prompt);
      session.readStrongest(sae.fingerprint, SHOWN);
    }
  }, [session, prompt, sae.fingerprint]);
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    onPrompt(text);
  };

  return (
    <Stack gap="xs" className="panel">
      <form onSubmit={submit}>
        <Group align="flex-end" gap="sm">
          <Textarea
            label="Which features fire on this text?"
            placeholder="Type or paste a sentence"
            autosize
            minRows={1}
            maxRows={5}
            flex={1}
            miw={200}
            value={text}
            onChange={(event) => setText(event.currentTarget.value)}
            data-testid="firing-prompt"
          />
          <Button type="submit" size="sm" disabled={text === ""} data-testid="firing-submit">Show</Button>
          {prompt && (
            <Button
              variant="default"
              size="sm"
              onClick={() => {
                setText("");
                onPrompt("");
              }}
            >
              Close
            </Button>
          )}
        </Group>
      </form>
      {prompt && (
        <>
          <LiveBanner model={sae.model} state={live} session={session} edit={edit} />
          {live.failure && <ErrorNote error={failureError(live.failure)} doing="Asking the model" />}
          {live.opened && found && (
            <ul className={styles.firing} aria-label="Features that fire, strongest first">
              {strongestFirst(found).slice(0, SHOWN).map((feature) => (
                <Firing
                  key={feature.index}
                  sae={sae}
                  feature={feature}
                  tokens={live.opened?.prompt ?? []}
                  leftOut={live.leftOut[sae.fingerprint]}
                />
              ))}
            </ul>
          )}
          {live.opened && !found && <Text size="sm" c="dimmed">Reading the features…</Text>}
        </>
      )}
    </Stack>
  );
}

interface FiringProps {
  sae: Sae;
  feature: { index: number; values: readonly number[]; strongest: number };
  tokens: readonly PromptToken[];
  leftOut: ReadonlySet<number> | undefined;
}

function Firing({ sae, feature, tokens, leftOut }: FiringProps) {
  const { data: row } = useQuery(featureAtQuery(sae.id, feature.index));
  const name = row?.label ?? "";
  return (
    <li className={styles.firingRow} data-testid="firing-feature" data-index={feature.index}>
      <span className={styles.clip}>
        {row ? (
          <TextLink to="/projects/$project/features/$feature" params={{ project: sae.project, feature: row.id }}>{feature.index}</TextLink>
        ) : (
          feature.index
        )}{" "}
        {name ? <strong>{name}</strong> : <span className={styles.tokens}>{row?.top_tokens.slice(0, 4).map(tokenLabel).join(" ")}</span>}
      </span>
      <span className={styles.number} title="strongest activation on this text">{number(feature.strongest)}</span>
      <TokenHeat
        tokens={tokens.map((token, place) => ({ text: token.text, value: feature.values[place] ?? 0, sink: leftOut?.has(place) }))}
        scale={row?.max_activation ?? feature.strongest}
        label={`Feature ${feature.index} on the text`}
      />
    </li>
  );
}
