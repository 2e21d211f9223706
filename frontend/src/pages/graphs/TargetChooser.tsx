import { Button, Group, NumberInput, Select, Stack, Tabs, Text, TextInput } from "@mantine/core";
import { useEffect, useState } from "react";
import type { Sae } from "@/api/types";
import { canTakePart } from "@/graphs/saes";
import type { GraphTarget } from "@/graphs/types";
import { strongestFirst, type LiveSession, type LiveState } from "@/live/liveSession";
import { number, percent } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./Graphs.module.css";

interface TargetChooserProps {
  saes: readonly Sae[];
  session: LiveSession | null;
  live: LiveState;
  onTarget: (target: Partial<GraphTarget>) => void;
}

/** What to explain: a next token, one rather than another, a feature that fires, or what a head looks at. */
export function TargetChooser({ saes, session, live, onTarget }: TargetChooserProps) {
  const readable = saes.filter(canTakePart);
  return (
    <section className="panel" aria-label="What to explain" data-testid="target-chooser">
      <Tabs defaultValue="token" keepMounted={false}>
        <Tabs.List>
          <Tabs.Tab value="token">A next token</Tabs.Tab>
          <Tabs.Tab value="feature">A feature</Tabs.Tab>
          <Tabs.Tab value="attention">What a head looks at</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="token" pt="sm"><NextToken live={live} onTarget={onTarget} /></Tabs.Panel>
        <Tabs.Panel value="feature" pt="sm">
          {readable.length > 0 ? <FiringFeature saes={readable} session={session} live={live} onTarget={onTarget} /> : <Text size="sm">This model has no SAE yet. A next token can be explained by its heads and MLPs all the same.</Text>}
        </Tabs.Panel>
        <Tabs.Panel value="attention" pt="sm"><HeadTarget live={live} onTarget={onTarget} /></Tabs.Panel>
      </Tabs>
    </section>
  );
}

function NextToken({ live, onTarget }: Pick<TargetChooserProps, "live" | "onTarget">) {
  const [against, setAgainst] = useState<string | null>(null);
  const [search, setSearch] = useState("");
  const next = live.opened?.next ?? [];
  const shown = next.filter((row) => row.text.toLowerCase().includes(search.toLowerCase()));
  const other = against === null ? null : Number(against);
  return (
    <Stack gap="xs">
      <Group gap="sm" align="flex-end">
        <TextInput size="xs" label="Among the likeliest next tokens" value={search} onChange={(event) => setSearch(event.currentTarget.value)} />
        <Select size="xs" label="Rather than" placeholder="any other" clearable allowDeselect searchable data={next.map((row) => ({ value: String(row.token), label: tokenLabel(row.text) }))} value={against} onChange={setAgainst} data-testid="target-against" />
      </Group>
      <ul className={styles.chips}>
        {shown.filter((row) => row.token !== other).map((row) => (
          <li key={row.token}>
            <Button
              variant="default"
              size="compact-sm"
              ff="monospace"
              onClick={() => onTarget(other === null ? { kind: "token", token: row.token, position: -1 } : { kind: "difference", token: row.token, against: other, position: -1 })}
              data-testid="target-token"
            >
              {tokenLabel(row.text)} <Text component="span" size="xs" c="dimmed" ml={6}>{percent(row.base)}</Text>
            </Button>
          </li>
        ))}
      </ul>
    </Stack>
  );
}

function FiringFeature({ saes, session, live, onTarget }: TargetChooserProps) {
  const [chosen, setChosen] = useState<string | null>(null);
  const [place, setPlace] = useState<number | null>(null);
  const [typed, setTyped] = useState<number | string>("");
  const sae = saes.find((one) => one.id === chosen) ?? saes[0]!;
  const opened = live.opened?.session;
  useEffect(() => {
    if (opened) session?.readStrongest(sae.fingerprint, 60);
  }, [session, opened, sae.fingerprint]);
  const tokens = live.opened?.prompt ?? [];
  const at = place !== null && place < tokens.length ? place : tokens.length - 1;
  const fire = strongestFirst(live.activations[sae.fingerprint] ?? {})
    .filter(({ values }) => (values[at] ?? 0) > 0)
    .sort((a, b) => (b.values[at] ?? 0) - (a.values[at] ?? 0));
  return (
    <Stack gap="xs">
      <Select size="xs" maw={360} label="SAE" data={saes.map((one) => ({ value: one.id, label: `${one.name} (${one.site}.${one.layer})` }))} value={sae.id} onChange={setChosen} />
      <Text size="xs" c="dimmed" id="target-token-label">At which token</Text>
      <div className={styles.tokens} role="group" aria-labelledby="target-token-label">
        {tokens.map((token, position) => <button key={position} type="button" className={styles.tokenButton} aria-pressed={position === at} onClick={() => setPlace(position)}>{tokenLabel(token.text)}</button>)}
      </div>
      <Text size="xs" c="dimmed">{fire.length > 0 ? "Features that fire there, of the strongest on this prompt" : "None of the strongest features fires there."}</Text>
      <ul className={styles.chips}>
        {fire.slice(0, 40).map(({ index, values }) => (
          <li key={index}>
            <Button variant="default" size="compact-sm" onClick={() => onTarget({ kind: "feature", sae: sae.fingerprint, index, position: at })} data-testid="target-feature">
              {index} <Text component="span" size="xs" c="dimmed" ml={6}>{number(values[at])}</Text>
            </Button>
          </li>
        ))}
      </ul>
      <Group gap="xs" align="flex-end">
        <NumberInput size="xs" w={140} label="Or its number" min={0} allowDecimal={false} value={typed} onChange={setTyped} />
        <Button variant="default" disabled={typeof typed !== "number"} onClick={() => typeof typed === "number" && onTarget({ kind: "feature", sae: sae.fingerprint, index: typed, position: at })}>Explain it</Button>
      </Group>
    </Stack>
  );
}

function HeadTarget({ live, onTarget }: Pick<TargetChooserProps, "live" | "onTarget">) {
  const tokens = live.opened?.prompt ?? [];
  const [layer, setLayer] = useState<number | string>(0);
  const [head, setHead] = useState<number | string>(0);
  const [query, setQuery] = useState(String(tokens.length - 1));
  const [key, setKey] = useState("0");
  const options = tokens.map((token, place) => ({ value: String(place), label: `${tokenLabel(token.text)} (${place})` }));
  const whole = typeof layer === "number" && typeof head === "number";
  return (
    <Group gap="sm" align="flex-end">
      <NumberInput size="xs" w={90} label="Block" min={0} allowDecimal={false} value={layer} onChange={setLayer} />
      <NumberInput size="xs" w={90} label="Head" min={0} allowDecimal={false} value={head} onChange={setHead} />
      <Select size="xs" w={170} label="From" data={options} value={query} onChange={(value) => value !== null && setQuery(value)} />
      <Select size="xs" w={170} label="To" data={options.slice(0, Number(query) + 1)} value={key} onChange={(value) => value !== null && setKey(value)} />
      <Button disabled={!whole} onClick={() => whole && onTarget({ kind: "attention", layer, head, position: Number(query), key: Number(key) })} data-testid="target-head">Explain it</Button>
    </Group>
  );
}
