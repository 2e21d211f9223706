import { Text } from "@mantine/core";
import type { ReactNode } from "react";
import { LinkButton } from "@/components/LinkButton";
import styles from "./Home.module.css";
import type { Stage } from "./lineage";

interface NextStepProps {
  stage: Stage;
  project: string;
  edit: boolean;
  /** Nothing of this stage exists yet. */
  empty: boolean;
  /** What this stage builds on exists. */
  possible: boolean;
  needsModel: boolean;
}

const TEXTS: Record<Stage, { step: string; why: string }> = {
  models: { step: "1. Add a model", why: "From the Hub, a folder, or a GGUF file." },
  recordings: { step: "2. Record activations", why: "Run the model over text and keep what one or more blocks put out." },
  saes: { step: "3. Train an SAE", why: "Learn a dictionary of features for one block." },
  measured: { step: "then evaluate and analyse", why: "How good the SAE is, and what each of its features stands for." },
  patches: { step: "4. Patch the model", why: "Ablate, scale or add features and watch the next-token probabilities move." },
  exports: { step: "then take it out", why: "A patch as files for other programs, each measured against the live patch." },
};

/** What to do where nothing is yet; a small "add" where something is. */
export function NextStep({ stage, project, edit, empty, possible, needsModel }: NextStepProps) {
  const params = { project };
  const waiting = stage === "models" ? false : stage === "patches" ? needsModel : !possible;
  const variant = empty && !waiting ? "filled" : "default";
  const buttons: Record<Stage, ReactNode> = {
    models: <LinkButton data-next to="/projects/$project/models" params={params} search={{ add: true }} variant={needsModel ? "filled" : "default"}>Add a model</LinkButton>,
    recordings: <LinkButton data-next to="/projects/$project/recordings" params={params} search={{ add: true }} variant={variant}>Record activations</LinkButton>,
    saes: <LinkButton data-next to="/projects/$project/saes" params={params} search={{ add: true }} variant={variant}>Train an SAE</LinkButton>,
    measured: <LinkButton data-next to="/projects/$project/saes" params={params} variant="default">Choose an SAE</LinkButton>,
    patches: <LinkButton data-next to="/projects/$project/lab" params={params} variant={variant}>Open the patch lab</LinkButton>,
    exports: <LinkButton data-next to="/projects/$project/patches" params={params} variant="default">Choose a patch</LinkButton>,
  };
  if (!empty && (stage === "measured" || stage === "exports")) return null;
  if (!empty && !(stage === "models" && needsModel)) return edit || stage === "patches" ? <div>{buttons[stage]}</div> : null;
  return (
    <div className={styles.step}>
      <Text size="sm" fw={600}>{TEXTS[stage].step}</Text>
      <Text size="xs" c="dimmed">{TEXTS[stage].why}</Text>
      {(edit || stage === "patches") && buttons[stage]}
    </div>
  );
}
