import { useQuery } from "@tanstack/react-query";
import { useCallback } from "react";
import { adaptersQuery } from "@/api/adapters";
import type { Adapter, AdapterSummary, Sae } from "@/api/types";
import { targetOf, type EditCard } from "@/patches/plan";

export interface CardName {
  name: string;
  /** More about it; empty for features, whose rows say it. */
  detail: string;
}

/** "rank 3, 12 modules". */
export function adapterWords(adapter: Adapter): string {
  const { rank, modules = [] } = adapter.summary as AdapterSummary;
  return [rank !== undefined && `rank ${rank}`, modules.length > 0 && `${modules.length} ${modules.length === 1 ? "module" : "modules"}`].filter(Boolean).join(", ");
}

/** What cards act through, by the names people gave. */
export function useNames(model: string, saes: readonly Sae[]): (card: EditCard) => CardName {
  const { data: adapters } = useQuery(adaptersQuery(model));
  return useCallback(
    (card) => {
      const adapter = card.adapter ? adapters?.find((one) => one.fingerprint === card.adapter) : undefined;
      if (adapter) return { name: adapter.name, detail: adapterWords(adapter) };
      const sae = card.kind.refers_to === "sae" ? saes.find((one) => one.fingerprint === card.feature.sae) : undefined;
      return sae ? { name: sae.name, detail: card.feature.site } : { name: targetOf(card), detail: "" };
    },
    [adapters, saes],
  );
}
