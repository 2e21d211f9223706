import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { jobKindsQuery } from "@/api/jobs";
import type { FieldSpec, Preset } from "@/api/types";
import { askedFields, entriesOf, entryProblem, initialEntries, paramsOf, type Entries } from "./fields";

export interface ParamsState {
  specs: readonly FieldSpec[];
  entries: Entries;
  setEntries: (entries: Entries) => void;
  tried: boolean;
  /** The chosen recipe, if the kind of job has such. */
  preset: Preset | null;
  /**
   * The parameters to send, or null when something must be mended first; problems show from then on. With a
   * recipe, everything it sets is sent as it stands in the form.
   */
  collect: () => Record<string, unknown> | null;
  loading: boolean;
  error: unknown;
}

const NONE: readonly string[] = [];

/**
 * The state of a generated form for one kind of job. With the parameters of an earlier job it starts from
 * those, and collects only what is different.
 */
export function useParams(kind: string, chosenElsewhere: readonly string[] = NONE, earlier?: Record<string, unknown>): ParamsState {
  const kinds = useQuery(jobKindsQuery);
  const [typed, setTyped] = useState<Entries>({});
  const [tried, setTried] = useState(false);
  const fields = kinds.data?.find((one) => one.name === kind)?.fields;
  const presets = kinds.data?.find((one) => one.name === kind)?.presets;
  const left = chosenElsewhere.join(" ");
  const specs = useMemo(() => {
    const asked = askedFields(fields ?? [], left.split(" "));
    return earlier ? asked.map((spec) => (spec.name in earlier ? { ...spec, default: earlier[spec.name] } : spec)) : asked;
  }, [fields, left, earlier]);
  const entries = useMemo(() => ({ ...initialEntries(specs), ...typed }), [specs, typed]);
  const presetOf = (of: Entries) => presets?.[String(of.preset ?? "")] ?? null;
  const preset = presetOf(entries);
  const setEntries = (next: Entries) => {
    if (next.preset === entries.preset) {
      setTyped(next);
      return;
    }
    // Choosing a recipe fills in its values; leaving it takes them back.
    const before = initialEntries(specs.filter((spec) => spec.name in (preset?.values ?? {})));
    setTyped({ ...next, ...before, ...entriesOf(specs, presetOf(next)?.values ?? {}) });
  };
  const collect = () => {
    setTried(true);
    if (specs.some((spec) => entryProblem(spec, entries[spec.name]))) return null;
    return paramsOf(specs, entries, Object.keys(preset?.values ?? {}));
  };
  return { specs, entries, setEntries, preset, tried, collect, loading: kinds.isPending, error: kinds.error };
}
