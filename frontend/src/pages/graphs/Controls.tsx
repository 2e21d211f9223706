import { SegmentedControl, Slider, Text } from "@mantine/core";
import type { GraphView } from "@/graphs/view";
import { percent } from "@/science/format";
import styles from "./Graphs.module.css";

export type Look = "picture" | "table";

interface ControlsProps {
  view: GraphView;
  onView: (view: GraphView) => void;
  look: Look;
  onLook: (look: Look) => void;
  /** Edges drawn, of so many. */
  drawn: number;
  all: number;
  /** The most parents of one node. */
  widest: number;
}

/** What of the graph is drawn, and how. */
export function Controls({ view, onView, look, onLook, drawn, all, widest }: ControlsProps) {
  const most = view.most === 0 ? widest : Math.min(view.most, widest);
  return (
    <div className="panel">
      <div className={styles.controls}>
        <div>
          <Text size="xs" component="label" id="graph-least">{view.least > 0 ? `Hide edges below ${percent(view.least)} of the largest into the same node` : "Hide no edge for being small"}</Text>
          <Slider aria-labelledby="graph-least" thumbProps={{ "aria-labelledby": "graph-least" }} size="sm" min={0} max={1} step={0.01} label={null} value={view.least} onChange={(least) => onView({ ...view, least })} />
        </div>
        {widest > 1 && (
          <div>
            <Text size="xs" component="label" id="graph-most">{most >= widest ? "All parents of every node" : `The strongest ${most} of every node’s parents`}</Text>
            <Slider aria-labelledby="graph-most" thumbProps={{ "aria-labelledby": "graph-most" }} size="sm" min={1} max={widest} step={1} label={null} value={most} onChange={(value) => onView({ ...view, most: value >= widest ? 0 : value })} />
          </div>
        )}
        <div>
          <SegmentedControl size="xs" aria-label="Show as" data={[{ value: "picture", label: "Picture" }, { value: "table", label: "Table" }]} value={look} onChange={onLook} />
          <Text size="xs" c="dimmed" component="span" ml="xs" data-testid="graph-drawn">{drawn} of {all} edges</Text>
        </div>
      </div>
      <Legend />
    </div>
  );
}

const LINES: [color: string, dashes: string, struck: boolean, words: string][] = [
  ["var(--data-more)", "", false, "adds, verified"],
  ["var(--data-less)", "", false, "takes away, verified"],
  ["var(--data-more)", "6 4", false, "not measured"],
  ["var(--data-more)", "1.5 4", true, "measured, not shown"],
];

function Legend() {
  return (
    <div className={styles.legend} style={{ marginTop: "0.5rem" }}>
      {LINES.map(([color, dashes, struck, words]) => (
        <span key={words}>
          <svg aria-hidden="true" viewBox="0 0 30 10"><path d="M0 5H30" stroke={color} strokeWidth="2.5" strokeDasharray={dashes} />{struck && <path d="M10 9L20 1" stroke={color} strokeWidth="1.75" />}</svg>
          {words}
        </span>
      ))}
      <span>width: share of the largest attribution into the same node; double outline: one direction over several layers; grey: what SAEs leave over, constants</span>
    </div>
  );
}
