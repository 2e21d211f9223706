import { Text } from "@mantine/core";
import { Facts, type Fact } from "@/components/Facts";
import type { Graph } from "@/graphs/types";
import { counted } from "@/graphs/words";
import { duration, fixed, number, percent } from "@/science/format";

/** Completeness as people read it: 1.000 where it is exact. */
const ratio = (value: number | null) => (value === null ? "–" : fixed(value, 4));

function facts(graph: Graph): Fact[] {
  const { summary, precision, runs_in: runsIn } = graph;
  const target = graph.nodes.find((node) => node.kind === "target");
  const account = graph.accounts.find(({ node }) => node === target?.id);
  const wanted = account ? account.value - account.constant : 0;
  const found = account ? account.features + account.errors + account.biases + account.modules : 0;
  return [
    { label: "Completeness", value: ratio(graph.completeness), title: "of the exact parts of the target: what they sum to, as a share of what is to be explained" },
    { label: "Over SAEs", value: account && wanted !== 0 ? ratio(found / wanted) : "–", title: "the same of the features, errors and constants that reach the target" },
    { label: "Error share", value: percent(summary.error_share), title: "of the sizes of all attributions, those of what SAEs leave over" },
    { label: "Depth", value: String(summary.depth), title: "hops on the longest path of verified edges; carried directions not counted" },
    { label: "Verified", value: `${summary.verified} of ${summary.measured}`, title: "edges whose parent, removed from the running model, moved the child more than matched random features do" },
    { label: "Spearman", value: summary.spearman === null ? "–" : fixed(summary.spearman, 2), title: "rank correlation of predicted and measured effects" },
    { label: "Same sign", value: percent(summary.sign_agreement), title: "share of measured edges whose effect has the predicted sign" },
    { label: "First picture", value: duration(summary.first_seconds) },
    { label: "Complete after", value: duration(summary.seconds) },
    { label: "Computed in", value: precision === runsIn ? precision : `${precision}; the model runs in ${runsIn}`, title: "attributions do not reproduce in half precision, so they are computed in float32" },
  ];
}

/** How far the graph can be believed, and what it says about itself. */
export function Figures({ graph, saeName }: { graph: Graph; saeName: (fingerprint: string) => string | undefined }) {
  const value = graph.nodes.find((node) => node.kind === "target")?.value;
  return (
    <div className="panel" data-testid="graph-figures" data-depth={graph.summary.depth} data-completeness={graph.completeness ?? ""}>
      <Facts facts={value == null ? facts(graph) : [{ label: "Explained value", value: number(value) }, ...facts(graph)]} />
      {graph.notes.length > 0 && (
        <ul style={{ margin: "0.5rem 0 0", paddingLeft: "1.1rem", fontSize: "0.8125rem" }} data-testid="graph-notes">
          {graph.notes.map((note) => <li key={note}>{note}</li>)}
        </ul>
      )}
      {graph.saes.length > 0 && (
        <Text size="xs" c="dimmed" mt={6}>
          {counted(graph.saes.length, "SAE")}: {graph.saes.map((sae) => `${saeName(sae.fingerprint) ?? (sae.name || sae.fingerprint.slice(0, 8))} at ${sae.site}`).join(", ")}. MLPs {graph.mlp === "gates" ? "as they act on this prompt, their gates frozen" : "by their gradient"}.
        </Text>
      )}
    </div>
  );
}
