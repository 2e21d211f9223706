import { Button, Text, Title } from "@mantine/core";
import { useHotkeys } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useParams } from "@tanstack/react-router";
import { useCallback, useState } from "react";
import { featureAtQuery, featureQuery, percentileOf } from "@/api/features";
import type { FeatureDetail, FeatureDetails } from "@/api/types";
import { useProjectId, useRights } from "@/app/project";
import type { NewGraphSearch } from "@/app/search";
import { Facts } from "@/components/Facts";
import { Histogram } from "@/charts/Histogram";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page, type Crumb } from "@/components/Page";
import { WeightBars } from "@/charts/WeightBars";
import { integer, number, percent } from "@/science/format";
import { equalBins, shareAbove } from "@/science/histogram";
import { AddedAnalyses } from "./AddedAnalyses";
import { Examples } from "./Examples";
import { FeatureLabel, StarButton } from "./FeatureLabel";
import styles from "./FeaturePage.module.css";
import { RelatedFeatures } from "./RelatedFeatures";

export function FeaturePage() {
  const { feature: id } = useParams({ from: "/signed-in/projects/$project/features/$feature" });
  const query = useQuery(featureQuery(id));
  return <Loaded query={query} what="the feature" rows={8}>{(detail) => <FeatureView key={detail.feature.id} detail={detail} />}</Loaded>;
}

function FeatureView({ detail }: { detail: FeatureDetail }) {
  const project = useProjectId();
  const { edit } = useRights(project);
  const { feature, sae, details } = detail;
  const crumbs: Crumb[] = [
    { label: sae.name, to: "/projects/$project/saes/$sae", params: { project, sae: sae.id } },
    { label: "Features", to: "/projects/$project/saes/$sae/features", params: { project, sae: sae.id } },
  ];
  const where = provenanceOf(detail);
  const title = feature.label ? `${feature.index}: ${feature.label}` : `Feature ${feature.index}`;

  return (
    <Page
      title={title}
      crumbs={crumbs}
      heading={<><StarButton feature={feature} edit={edit} /> Feature {feature.index}</>}
      lead={`of ${sae.name}, ${sae.site}.${sae.layer}`}
      actions={
        <>
          <Neighbour project={project} sae={sae.id} index={feature.index - 1} hotkey="[" label="Previous" />
          <Neighbour project={project} sae={sae.id} index={feature.index + 1} hotkey="]" label="Next" />
          <LinkButton to="/projects/$project/lab" params={{ project }} search={{ model: sae.model, add: feature.id }} data-testid="add-to-patch">Add to patch</LinkButton>
          {where && <LinkButton variant="default" to="/projects/$project/graphs/new" params={{ project }} search={where} title="On its strongest example" data-testid="feature-to-graph">Where does this come from?</LinkButton>}
        </>
      }
    >
      <FeatureLabel feature={feature} edit={edit} />
      {details.dead ? (
        <Text className="panel">This feature fired on none of the tokens it was analysed on. It can still be added to a patch; there is nothing to scale or ablate, though.</Text>
      ) : null}
      <Evidence detail={detail} />
    </Page>
  );
}

/** A graph of the feature on its strongest example, which ends where it fires most: what follows plays no part. */
function provenanceOf({ feature, sae, details }: FeatureDetail): NewGraphSearch | null {
  const [example] = details.examples;
  if (!example) return null;
  const prompt = example.texts.slice(0, example.peak + 1).join("");
  return { model: sae.model, prompt, target: { kind: "feature", sae: sae.fingerprint, index: feature.index, position: -1 } };
}

function Evidence({ detail }: { detail: FeatureDetail }) {
  const { details, feature } = detail;
  const [hovered, setHovered] = useState<number | null>(null);
  // Silent tokens are most of a text; a mark at zero would say nothing.
  const hover = useCallback((value: number | null) => setHovered(value !== null && value > 0 ? value : null), []);
  const bins = equalBins(details.histogram, 0, details.max_activation);
  return (
    <div className={styles.columns}>
      <div className={styles.side}>
        <div className="panel">
          <Facts
            facts={[
              { label: "Density", value: percent(details.density), title: "share of tokens it fires on" },
              { label: "Fires on", value: details.density > 0 ? `1 in ${integer(1 / details.density)}` : "no token" },
              { label: "Firings", value: integer(details.firings) },
              { label: "Max", value: number(details.max_activation) },
              { label: "Mean where it fires", value: number(details.mean_activation) },
              { label: "p99.9", value: number(details.p999), title: "99.9th percentile of its activation where it fires: the unit of “add” in the patch lab" },
              { label: "Decoder length", value: number(details.decoder_norm), title: "what one unit of activation adds to the residual stream, in raw units" },
              { label: "p99.9 in the stream", value: number(percentileOf(detail).length), title: "p99.9 × decoder length" },
              { label: "Encoder·decoder", value: number(details.encoder_decoder_cosine), title: "cosine of the two directions" },
            ]}
          />
        </div>
        {!details.dead && (
          <div className="panel">
            <Histogram title="Activations" bins={bins} axis="activation" counted="firings" scale="log" marked={hovered} />
            <Text size="xs" c="dimmed" mih="1.4em">
              {hovered !== null && `${number(hovered)}: stronger than ${percent(1 - shareAbove(bins, hovered))} of its firings`}
            </Text>
          </div>
        )}
        {!details.dead && (
          <div className="panel">
            <Title order={3}>Tokens it fires on</Title>
            <WeightBars
              label="Tokens it fires on, with mean activation and count"
              rows={details.top_tokens.map((token) => ({ token: token.token, text: token.text, weight: token.mean, shown: `${number(token.mean)} · ${integer(token.count)}×` }))}
            />
          </div>
        )}
      </div>
      <div className={styles.side}>
        <div className={styles.trio}>
          <LogitEffects title="Promotes" rows={details.promoted} details={details} />
          <LogitEffects title="Suppresses" rows={details.suppressed} details={details} />
        </div>
        {details.examples.length > 0 && <Examples details={details} index={feature.index} onHover={hover} />}
        <RelatedFeatures detail={detail} />
        <AddedAnalyses detail={detail} />
      </div>
    </div>
  );
}

function LogitEffects({ title, rows, details }: { title: string; rows: FeatureDetails["promoted"]; details: FeatureDetails }) {
  const largest = Math.max(0, ...[...details.promoted, ...details.suppressed].map((row) => Math.abs(row.weight)));
  return (
    <div className="panel" data-testid={title.toLowerCase()}>
      <Title order={3} title="effect on the next token’s logit per unit of activation, through the final norm and the unembedding">{title}</Title>
      <WeightBars label={`${title}: next tokens by effect on their logit`} largest={largest} rows={rows.map((row) => ({ ...row, shown: number(row.weight) }))} />
    </div>
  );
}

interface NeighbourProps {
  project: string;
  sae: string;
  index: number;
  hotkey: "[" | "]";
  label: string;
}

/** Previous or next feature, by button or key. */
function Neighbour({ project, sae, index, hotkey, label }: NeighbourProps) {
  const { data: found } = useQuery(featureAtQuery(sae, index));
  const navigate = useNavigate();
  const go = () => {
    if (found) void navigate({ to: "/projects/$project/features/$feature", params: { project, feature: found.id } });
  };
  useHotkeys([[hotkey, go]]);
  return (
    <Button variant="default" onClick={go} disabled={!found} title={`${label} feature (${hotkey})`} aria-keyshortcuts={hotkey} data-testid={`feature-${label.toLowerCase()}`}>
      {hotkey === "[" ? "‹ " : ""}{label}{hotkey === "]" ? " ›" : ""}
    </Button>
  );
}
