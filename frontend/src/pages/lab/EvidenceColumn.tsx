import { Stack, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { adaptersQuery } from "@/api/adapters";
import { featureAtQuery, featureQuery } from "@/api/features";
import type { Adapter, AdapterSummary, FeatureDetail, Sae } from "@/api/types";
import { Facts } from "@/components/Facts";
import { Histogram } from "@/charts/Histogram";
import { Loaded } from "@/components/Loaded";
import { TextLink } from "@/components/TextLink";
import { TokenHeat } from "@/charts/TokenHeat";
import { WeightBars } from "@/charts/WeightBars";
import type { EditCard } from "@/patches/plan";
import { integer, number, percent } from "@/science/format";
import { equalBins } from "@/science/histogram";
import styles from "./Lab.module.css";

interface EvidenceColumnProps {
  project: string;
  model: string;
  saes: readonly Sae[];
  card: EditCard | undefined;
  /** An activation to mark in the histogram. */
  marked: number | null;
}

/** The selected card's feature row, with its details. */
export function useFeatureOf(card: EditCard | undefined) {
  const saeId = card?.feature.saeId ?? "";
  const index = card?.feature.index ?? -1;
  const row = useQuery({ ...featureAtQuery(saeId, index), enabled: saeId !== "" && index >= 0 });
  return useQuery({ ...featureQuery(row.data?.id ?? ""), enabled: Boolean(row.data) });
}

/** What is known of what the selected edit acts through. */
export function EvidenceColumn({ project, model, saes, card, marked }: EvidenceColumnProps) {
  return (
    <section className={`${styles.column} ${styles.evidence}`} aria-label="Evidence">
      {!card ? (
        <div className="panel"><Text size="sm" c="dimmed">Select an edit to see what it acts through.</Text></div>
      ) : card.adapter ? (
        <AdapterEvidence model={model} card={card} />
      ) : card.feature.saeId === "" ? (
        <div className="panel"><Text size="sm" c="dimmed">The SAE of this edit is not in the project any more, or its features were not analysed.</Text></div>
      ) : card.feature.index < 0 ? (
        <SaeEvidence project={project} card={card} sae={saes.find((one) => one.id === card.feature.saeId)} />
      ) : (
        <FeatureEvidence project={project} card={card} marked={marked} />
      )}
    </section>
  );
}

function FeatureEvidence({ project, card, marked }: { project: string; card: EditCard; marked: number | null }) {
  const detail = useFeatureOf(card);
  return <Loaded query={detail} what="the feature" rows={6}>{(found) => <Card project={project} detail={found} marked={marked} />}</Loaded>;
}

function AdapterEvidence({ model, card }: { model: string; card: EditCard }) {
  const adapters = useQuery(adaptersQuery(model));
  return (
    <Loaded query={adapters} what="the adapter" rows={3}>
      {(rows) => {
        const found = rows.find((one) => one.fingerprint === card.adapter);
        return found ? <AdapterFacts adapter={found} chosen={card.modules} /> : <div className="panel"><Text size="sm" c="dimmed">The adapter of this edit is not in the project any more.</Text></div>;
      }}
    </Loaded>
  );
}

function AdapterFacts({ adapter, chosen }: { adapter: Adapter; chosen: readonly string[] }) {
  const { rank, parameters, modules = [], base_model: base } = adapter.summary as AdapterSummary;
  const shown = chosen.length > 0 ? chosen : modules;
  return (
    <Stack gap="sm" className="panel" data-testid="evidence" data-adapter={adapter.fingerprint}>
      <Text fw={600}>{adapter.name}</Text>
      <Facts facts={[{ label: "Rank", value: integer(rank) }, { label: "Parameters", value: integer(parameters) }, { label: "Fingerprint", value: adapter.fingerprint.slice(0, 12) }]} />
      {base && <Text size="xs" c="dimmed">Made for {base}</Text>}
      <div>
        <Text size="xs" fw={600}>{shown.length} of {modules.length} modules</Text>
        <ul style={{ margin: "0.3rem 0 0", paddingLeft: "1.1rem", maxHeight: "16rem", overflowY: "auto" }}>
          {shown.map((path) => <li key={path}><Text component="span" size="xs" ff="monospace" style={{ overflowWrap: "anywhere" }}>{path}</Text></li>)}
        </ul>
      </div>
    </Stack>
  );
}

function SaeEvidence({ project, card, sae }: { project: string; card: EditCard; sae: Sae | undefined }) {
  if (!sae) return null;
  return (
    <Stack gap="sm" className="panel" data-testid="evidence" data-sae={sae.id}>
      <TextLink to="/projects/$project/saes/$sae" params={{ project, sae: sae.id }} fw={600}>{sae.name}</TextLink>
      <Facts facts={[{ label: "Site", value: `${sae.site}.${sae.layer}` }, { label: "Width", value: integer(sae.width) }, { label: "k", value: integer(sae.k) }]} />
      <Text size="xs" c="dimmed">{card.kind.title} {card.kind.description}.</Text>
    </Stack>
  );
}

function Card({ project, detail, marked }: { project: string; detail: FeatureDetail; marked: number | null }) {
  const { feature, details } = detail;
  return (
    <Stack gap="sm" className="panel" data-testid="evidence" data-index={feature.index}>
      <div>
        <TextLink to="/projects/$project/features/$feature" params={{ project, feature: feature.id }} fw={600}>Feature {feature.index}</TextLink>
        {feature.label && <Text size="sm">{feature.label}</Text>}
      </div>
      <Facts
        facts={[
          { label: "Density", value: percent(details.density) },
          { label: "p99.9", value: number(details.p999) },
          { label: "Max", value: number(details.max_activation) },
        ]}
      />
      {!details.dead && (
        <Histogram title="Activations" bins={equalBins(details.histogram, 0, details.max_activation)} axis="activation" counted="firings" scale="log" marked={marked} height={90} />
      )}
      <div>
        <Text size="xs" fw={600}>Promotes</Text>
        <WeightBars label="Promoted tokens" rows={details.promoted.slice(0, 6).map((row) => ({ ...row, shown: number(row.weight) }))} />
      </div>
      <div>
        <Text size="xs" fw={600}>Suppresses</Text>
        <WeightBars label="Suppressed tokens" rows={details.suppressed.slice(0, 6).map((row) => ({ ...row, shown: number(row.weight) }))} />
      </div>
      {details.examples.slice(0, 3).map((example, place) => (
        <TokenHeat
          key={place}
          tokens={example.texts.map((text, position) => ({ text, value: example.values[position] ?? 0 }))}
          scale={details.max_activation}
          peak={example.peak}
          label={`Example ${place + 1}`}
          testId="evidence-token"
        />
      ))}
    </Stack>
  );
}
