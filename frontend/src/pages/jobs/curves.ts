/** Curves out of a job's history. */

import type { JobEvent, MetricsData } from "@/api/types";
import type { Series } from "@/charts/LineChart";

export interface Curve {
  name: string;
  phase: string;
  series: Series;
}

/** One curve per metric and phase, over the amount of work done; later attempts overwrite what they repeat. */
export function curvesOf(events: readonly JobEvent[]): Curve[] {
  const curves = new Map<string, { name: string; phase: string; points: Map<number, number | null> }>();
  for (const event of events) {
    if (event.kind !== "metrics") continue;
    const { phase = "", done = 0, metrics = {} } = event.data as MetricsData;
    for (const [name, value] of Object.entries(metrics)) {
      const key = `${phase} ${name}`;
      const curve = curves.get(key) ?? { name, phase, points: new Map<number, number | null>() };
      curves.set(key, curve);
      // A resumed attempt starts again from its checkpoint: what lies beyond was never kept.
      for (const x of curve.points.keys()) if (x > done) curve.points.delete(x);
      curve.points.set(done, value);
    }
  }
  return [...curves.values()].map(({ name, phase, points }) => {
    const xs = [...points.keys()].sort((a, b) => a - b);
    return { name, phase, series: { x: xs, y: xs.map((x) => points.get(x) ?? null) } };
  });
}
