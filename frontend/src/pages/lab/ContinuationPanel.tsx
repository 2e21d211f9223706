import { Button, Group, NumberInput, SimpleGrid, Text } from "@mantine/core";
import { useState } from "react";
import { progressWords, sharedLength, type GenerationOptions } from "@/live/continuation";
import type { LiveSession, LiveState } from "@/live/liveSession";
import styles from "./Lab.module.css";

interface ContinuationPanelProps {
  prompt: string;
  session: LiveSession | null;
  live: LiveState;
}

/** What the model writes next, unpatched and patched side by side, while the stack may change. */
export function ContinuationPanel({ prompt, session, live }: ContinuationPanelProps) {
  const [options, setOptions] = useState<GenerationOptions>({ seed: 0, temperature: 0, tokens: 40 });
  const text = live.continuation;
  const running = text?.ended === null;
  const change = (part: keyof GenerationOptions) => (value: number | string) => {
    if (typeof value === "number" && Number.isFinite(value)) setOptions({ ...options, [part]: value });
  };
  const shared = text ? sharedLength(text.base, text.patched) : 0;
  return (
    <div className="panel" data-testid="continuation" aria-busy={running}>
      <Group justify="space-between" align="flex-end" gap="xs">
        <Text fw={600} size="sm">Continuation</Text>
        <Group gap="xs" align="flex-end">
          <NumberInput size="xs" w={84} label="Tokens" min={1} max={4096} value={options.tokens} onChange={change("tokens")} allowDecimal={false} clampBehavior="strict" />
          <NumberInput size="xs" w={96} label="Temperature" min={0} max={100} step={0.1} decimalScale={2} value={options.temperature} onChange={change("temperature")} title="0 takes the likeliest token" />
          <NumberInput size="xs" w={84} label="Seed" min={0} max={2 ** 53 - 1} value={options.seed} onChange={change("seed")} allowDecimal={false} disabled={options.temperature === 0} title="Equal seeds give equal texts" />
          {running ? (
            <Button size="xs" variant="default" onClick={() => session?.stopGeneration()} data-testid="stop-generation">Stop</Button>
          ) : (
            <Button size="xs" onClick={() => session?.generate(options)} disabled={!session || !live.opened} data-testid="generate">Write on</Button>
          )}
        </Group>
      </Group>
      {text ? (
        <>
          <Text size="xs" c="dimmed" role="status" mt={6}>{progressWords(text)}</Text>
          <SimpleGrid cols={{ base: 1, sm: 2 }} spacing="xs" mt={6}>
            <Column title="Base" prompt={prompt} text={text.base} shared={shared} testId="text-base" />
            <Column title="Patched" prompt={prompt} text={text.patched} shared={shared} testId="text-patched" />
          </SimpleGrid>
        </>
      ) : (
        <Text size="sm" c="dimmed" mt={6}>Both texts are drawn with the same noise: they part where the patch parts them. Changes of the stack show from the next token on.</Text>
      )}
    </div>
  );
}

interface ColumnProps {
  title: string;
  prompt: string;
  text: string;
  /** How much of the text both columns have in common. */
  shared: number;
  testId: string;
}

function Column({ title, prompt, text, shared, testId }: ColumnProps) {
  return (
    <div className={styles.text}>
      <Text component="div" size="xs" fw={600}>{title}</Text>
      <p>
        <span className={styles.quoted}>{prompt.slice(-60)}</span>
        <span data-testid={testId}>
          <span>{text.slice(0, shared)}</span>
          <mark className={styles.parted}>{text.slice(shared)}</mark>
        </span>
      </p>
    </div>
  );
}
