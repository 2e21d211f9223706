import { SimpleGrid } from "@mantine/core";
import { useMemo } from "react";
import type { JobEvent } from "@/api/types";
import { LineChart } from "@/charts/LineChart";
import { number, percent } from "@/science/format";
import { curvesOf } from "./curves";

interface Look {
  title: string;
  logarithmic?: boolean;
  show?: (value: number | null) => string;
}

const LOOKS: Record<string, Look> = {
  fvu: { title: "FVU (training batches)", logarithmic: true },
  l0: { title: "L0: active latents per token", show: (value) => number(value, 3) },
  dead: { title: "Dead latents", show: percent },
  lr: { title: "Learning rate", show: (value) => number(value, 2) },
};

const ORDER = ["fvu", "l0", "dead", "loss", "lr"];

const rank = (name: string) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);

/** The curves of a job, as they grow. */
export function Curves({ events, unit }: { events: readonly JobEvent[]; unit: string }) {
  const curves = useMemo(() => curvesOf(events).sort((a, b) => rank(a.name) - rank(b.name)), [events]);
  if (curves.length === 0) return null;
  return (
    <SimpleGrid cols={{ base: 1, sm: 2, xl: 3 }} spacing="md">
      {curves.map(({ name, phase, series }) => {
        const look = LOOKS[name] ?? { title: `${name}${phase && ` · ${phase}`}` };
        const positive = series.y.every((value) => value !== null && value > 0);
        return (
          <div key={`${phase} ${name}`} className="panel">
            <LineChart title={look.title} xLabel={unit || "done"} series={series} logarithmic={look.logarithmic === true && positive} show={look.show ?? number} />
          </div>
        );
      })}
    </SimpleGrid>
  );
}
