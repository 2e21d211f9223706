import { Badge, Group } from "@mantine/core";
import type { ReactNode } from "react";
import { isActive } from "@/api/jobs";
import type { Lineage, LineageNode } from "@/api/types";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";
import { gateSign, gradeSign, type Gated } from "@/patches/exports";
import { bytes, compact, integer, number, percent, rate } from "@/science/format";
import styles from "./Home.module.css";

type Numbers = [label: string, value: string][];
type Value = number | string | boolean | null | undefined;

const asNumber = (value: Value) => (typeof value === "number" ? value : null);

function numbersOf({ type, numbers: n }: LineageNode): Numbers {
  const num = (name: string) => asNumber(n[name]);
  switch (type) {
    case "model":
      return [["parameters", compact(num("parameters"))], ["blocks", integer(num("n_layers"))], ["width", integer(num("d_model"))]];
    case "corpus":
      return [["size", bytes(num("bytes"))], ...(n.documents == null ? [] : [["documents", integer(num("documents"))] as [string, string]])];
    case "recording":
      return [["tokens", compact(num("tokens"))], ["blocks", String(n.layers ?? "–")], ["rate", rate(num("tokens_per_second"), "tok")], ["disk", bytes(num("bytes"))]];
    case "sae":
      return [["block", integer(num("layer"))], ["width", integer(num("width"))], ["k", integer(num("k"))]];
    case "evaluation":
      return [["FVU", number(num("fvu"))], ["L0", number(num("l0"))], ["CE recovered", percent(num("ce_recovered"))], ["goals", `${integer(num("goals_passed"))} of ${integer(num("goals"))}`]];
    case "analysis":
      return [["features", integer(num("features"))], ["dead", integer(num("dead"))], ["tokens", compact(num("tokens"))]];
    case "adapter":
      return [["rank", integer(num("rank"))], ["parameters", compact(num("parameters"))]];
    case "graph":
      return [["hops", integer(num("depth"))], ["verified", `${integer(num("verified"))} of ${integer(num("edges"))}`]];
    case "patch":
      return [["edits", integer(num("edits"))], ["version", integer(num("version"))]];
    case "export":
      return [["version", integer(num("version"))], ["faithful", gradeSign(String(n.grade))[1]]];
  }
}

const KINDS: Record<LineageNode["type"], string> = {
  model: "model",
  corpus: "corpus",
  recording: "recording",
  sae: "SAE",
  evaluation: "evaluation",
  analysis: "features",
  adapter: "adapter",
  graph: "graph",
  patch: "patch",
  export: "export",
};

interface BoxProps {
  node: LineageNode;
  project: string;
  edit: boolean;
  lineage: Lineage;
  onPoint: (on: boolean) => void;
}

/** One thing of the project: what it is, how it is, its figures, and the next sensible action. */
export function Box({ node, project, edit, lineage, onPoint }: BoxProps) {
  const job = useJobAbout(project, node.id);
  const resident = node.type === "model" && node.state === "ready" ? String(node.numbers.resident) : null;
  const state = resident === "ready" ? "loaded" : (resident ?? node.state);
  const showState = state !== "ready" && node.type !== "corpus";
  return (
    <article
      className={styles.box}
      data-node={node.id}
      data-type={node.type}
      data-state={node.state}
      data-testid="lineage-node"
      onMouseEnter={() => onPoint(true)}
      onMouseLeave={() => onPoint(false)}
    >
      <Group justify="space-between" gap={4}>
        <span className={styles.kind}>{KINDS[node.type]}</span>
        {node.type === "export" && <GateBadge node={node} />}
        {showState && node.type !== "export" && <StateBadge state={state} label={state === "loaded" ? "in memory" : state === "stopped" ? "not in memory" : undefined} />}
      </Group>
      <span className={styles.name}><Name node={node} project={project} lineage={lineage} /></span>
      <dl className={styles.numbers}>
        {numbersOf(node).filter(([, value]) => !value.startsWith("–")).map(([label, value]) => <div key={label}><dt>{label}</dt><dd>{value}</dd></div>)}
      </dl>
      {job && (isActive(job) || node.state === "failed") && <JobOf job={job} />}
      <Action node={node} project={project} edit={edit} lineage={lineage} busy={job !== undefined && isActive(job)} />
    </article>
  );
}

/** Whether an export may leave. */
function GateBadge({ node }: { node: LineageNode }) {
  const [sign, word, color] = gateSign({ gate: node.numbers.gate, state: node.state } as Gated);
  return <Badge color={color} variant="light" radius="sm" size="sm" tt="none" data-testid="gate" data-gate={node.numbers.gate} title={word}>{sign} {word.split(" by ")[0]}</Badge>;
}

/** The SAE an evaluation or analysis is about. */
function saeOf(node: LineageNode, lineage: Lineage): string {
  return lineage.edges.find((edge) => edge.target === node.id)?.source ?? "";
}

function Name({ node, project, lineage }: { node: LineageNode; project: string; lineage: Lineage }) {
  const params = { project };
  switch (node.type) {
    case "model":
      return <TextLink to="/projects/$project/models" params={params}>{node.name}</TextLink>;
    case "corpus":
    case "recording":
      return <TextLink to="/projects/$project/recordings" params={params}>{node.name}</TextLink>;
    case "sae":
      return <TextLink to="/projects/$project/saes/$sae" params={{ project, sae: node.id }}>{node.name}</TextLink>;
    case "evaluation":
      return <TextLink to="/projects/$project/saes/$sae" params={{ project, sae: saeOf(node, lineage) }}>of {node.name}</TextLink>;
    case "analysis":
      return <TextLink to="/projects/$project/saes/$sae/features" params={{ project, sae: saeOf(node, lineage) }}>of {node.name}</TextLink>;
    case "patch":
      return <TextLink to="/projects/$project/lab" params={params} search={{ patch: node.id }}>{node.name}</TextLink>;
    case "graph":
      return <TextLink to="/projects/$project/graphs/$graph" params={{ project, graph: node.id }}>{node.name}</TextLink>;
    case "adapter":
      return <TextLink to="/projects/$project/patches" params={params}>{node.name}</TextLink>;
    case "export":
      return <TextLink to="/projects/$project/patches" params={params} search={{ export: String(node.numbers.patch) }}>{node.name}</TextLink>;
  }
}

interface ActionProps {
  node: LineageNode;
  project: string;
  edit: boolean;
  lineage: Lineage;
  busy: boolean;
}

/** One button: what this thing is waiting for, or nothing. */
function Action({ node, project, edit, lineage, busy }: ActionProps): ReactNode {
  if (busy || node.state !== "ready") return null;
  const params = { project };
  const children = lineage.edges.filter((edge) => edge.source === node.id).map((edge) => edge.target);
  const childTypes = new Set(lineage.nodes.filter((one) => children.includes(one.id)).map((one) => one.type));
  const small = { "data-next": true, variant: "light", size: "compact-xs", style: { alignSelf: "flex-start" } } as const;
  if (node.type === "analysis") {
    return <LinkButton to="/projects/$project/saes/$sae/features" params={{ project, sae: saeOf(node, lineage) }} {...small}>Browse features</LinkButton>;
  }
  if (!edit) return null;
  if (node.type === "model" && !childTypes.has("recording")) {
    return <LinkButton to="/projects/$project/recordings" params={params} search={{ add: true, model: node.id }} {...small}>Record activations</LinkButton>;
  }
  if (node.type === "recording" && !childTypes.has("sae")) {
    return <LinkButton to="/projects/$project/saes" params={params} search={{ add: true, recording: node.id }} {...small}>Train an SAE</LinkButton>;
  }
  if (node.type === "sae" && !(childTypes.has("evaluation") && childTypes.has("analysis"))) {
    const next = childTypes.has("evaluation") ? "Analyse its features" : "Evaluate it";
    return <LinkButton to="/projects/$project/saes/$sae" params={{ project, sae: node.id }} {...small}>{next}</LinkButton>;
  }
  if (node.type === "patch" && !childTypes.has("export")) {
    return <LinkButton to="/projects/$project/patches" params={params} search={{ export: node.id }} {...small}>Take it out</LinkButton>;
  }
  return null;
}
