import { useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { featureQuery, percentileOf } from "@/api/features";
import type { Edit, EditKind, EditPlan, Feature, Model, Patch, Sae } from "@/api/types";
import type { LabSearch } from "@/app/search";
import { useLiveSession } from "@/live/hooks";
import { newCard, planOf, stackOf, type PickedFeature } from "@/patches/plan";
import { EvidenceColumn, useFeatureOf } from "./EvidenceColumn";
import { FeaturePicker } from "./FeaturePicker";
import styles from "./Lab.module.css";
import { PromptColumn } from "./PromptColumn";
import { SavePatch } from "./SavePatch";
import { StackColumn } from "./StackColumn";
import { useLabKeys } from "./useLabKeys";
import { useNames } from "./useNames";
import { useStack } from "./useStack";
import { WholeEdits } from "./WholeEdits";

const NO_EDITS: EditPlan = { version: 2, edits: [] };
const FIRST_PROMPT = "The capital of France is";

interface WorkspaceProps {
  project: string;
  model: Model;
  saes: readonly Sae[];
  /** Not empty. */
  kinds: readonly EditKind[];
  patch: Patch | undefined;
  search: LabSearch;
  onSearch: (part: Partial<LabSearch>) => void;
  edit: boolean;
}

/** The lab of one model: stack of edits, prompt and probabilities, evidence. */
export function Workspace({ project, model, saes, kinds, patch, search, onSearch, edit }: WorkspaceProps) {
  const stack = useStack();
  const [session, live] = useLiveSession(model.id);
  const [on, setOn] = useState(true);
  const [hovered, setHovered] = useState<number | null>(null);
  const picker = useRef<HTMLInputElement>(null);
  const prompt = search.prompt ?? FIRST_PROMPT;

  const find = useCallback(
    (one: Edit): PickedFeature => {
      const fingerprint = one.feature?.sae ?? one.sae;
      const sae = saes.find((known) => known.fingerprint === fingerprint);
      return { saeId: sae?.id ?? "", sae: fingerprint, index: one.feature?.index ?? -1, site: one.site, p999: null };
    },
    [saes],
  );
  // The stored stack is taken once per patch; later versions of it are made on this page.
  const [taken, setTaken] = useState<string | undefined>(undefined);
  if (patch && patch.id !== taken) {
    setTaken(patch.id);
    setOn(patch.enabled);
    stack.reset(stackOf(patch.plan, kinds, find));
  }

  const plan = useMemo(() => planOf(stack.cards), [stack.cards]);
  const add = useAddFeature(model.id, kinds, stack.add);
  useAddFromAddress(search.add, search.at, add, () => onSearch({ add: undefined, at: undefined }));
  useLabKeys(stack, () => picker.current?.focus());

  useEffect(() => session?.open(prompt), [session, prompt]);
  useEffect(() => session?.apply(on ? plan : NO_EDITS), [session, plan, on]);
  const opened = live.opened?.session;
  useEffect(() => {
    if (!session || !opened) return;
    for (const { feature } of plan.edits) if (feature) session.readFeatures(feature.sae, [feature.index]);
  }, [session, opened, plan]);

  const nameOf = useNames(model.id, saes);
  const selected = stack.selected;
  const detail = useFeatureOf(selected);
  const values = selected && live.activations[selected.feature.sae]?.[selected.feature.index];
  const strongest = values ? Math.max(0, ...values) : 0;
  const hover = useCallback((value: number | null) => setHovered(value !== null && value > 0 ? value : null), []);

  return (
    <div className={styles.workspace}>
      <StackColumn
        stack={stack}
        live={live}
        nameOf={nameOf}
        header={
          <SavePatch
            key={patch?.id ?? "new"}
            model={model.id}
            patch={patch}
            plan={plan}
            edit={edit}
            on={on}
            onSwitch={setOn}
            onCreated={(made) => {
              setTaken(made.id);
              onSearch({ patch: made.id, model: undefined });
            }}
            onRevert={(stored) => stack.reset(stackOf(stored.plan, kinds, find))}
          />
        }
        picker={
          <>
            <FeaturePicker saes={saes.filter((sae) => sae.analysis !== null)} session={session} live={live} search={picker} onPick={(feature) => void add(feature.id)} />
            <WholeEdits project={project} model={model.id} saes={saes.filter((sae) => sae.site === "resid_post")} edit={edit} onAdd={stack.add} />
          </>
        }
      />
      <PromptColumn
        project={project}
        model={model.id}
        prompt={prompt}
        onPrompt={(text) => onSearch({ prompt: text })}
        session={session}
        live={live}
        edit={edit}
        selected={selected}
        scale={detail.data?.details.max_activation ?? null}
        onHover={hover}
      />
      <EvidenceColumn project={project} model={model.id} saes={saes} card={selected} marked={hovered ?? (strongest > 0 ? strongest : null)} />
    </div>
  );
}

/** Puts a feature on the stack, in units of its own strength; ablated at one token of the prompt if one is named. */
function useAddFeature(model: string, kinds: readonly EditKind[], put: ReturnType<typeof useStack>["add"]) {
  const queries = useQueryClient();
  return useCallback(
    async (id: Feature["id"], at?: number) => {
      const detail = await queries.query(featureQuery(id));
      const { sae, feature } = detail;
      // Asked of the answer, not of a list of SAEs, which can be older than the feature.
      const kind = kinds.find((one) => one.refers_to === "feature" && (at === undefined || one.name === "ablate"));
      if (sae.model !== model || !kind) return;
      const card = newCard(
        { saeId: sae.id, sae: sae.fingerprint, index: feature.index, site: `${sae.site}.${sae.layer}`, p999: percentileOf(detail) },
        kind,
      );
      put(at === undefined ? card : { ...card, positions: { mode: "set", start: 0, indices: [at], include_sinks: true } });
    },
    [queries, model, kinds, put],
  );
}

/** Adds the feature named in the address, once, and takes it out of the address. */
function useAddFromAddress(feature: string | undefined, at: number | undefined, add: (id: string, at?: number) => Promise<void>, done: () => void) {
  const added = useRef<string | undefined>(undefined);
  useEffect(() => {
    if (!feature || added.current === feature) return;
    added.current = feature;
    void add(feature, at).then(done);
  }, [feature, at, add, done]);
}
