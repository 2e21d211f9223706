import { useState, type KeyboardEvent } from "react";
import { number } from "@/science/format";
import { heatStyle, legendStops } from "@/science/heat";
import { tokenInText, tokenSpoken } from "@/science/tokens";
import styles from "./TokenHeat.module.css";

export interface HeatToken {
  text: string;
  value: number;
  /** A special token or attention sink, which edits leave alone. */
  sink?: boolean;
}

interface TokenHeatProps {
  tokens: readonly HeatToken[];
  /** The feature's own maximum over the whole recording. */
  scale: number;
  /** What the strip shows, for screen readers: "Example 3". */
  label: string;
  peak?: number;
  unit?: string;
  /** The token under the pointer or the keyboard's cursor, or null. */
  onHover?: (value: number | null, position: number | null) => void;
  testId?: string;
}

/** Running text whose tokens are coloured by activation. Arrow keys walk through the tokens. */
export function TokenHeat({ tokens, scale, label, peak, unit = "", onHover, testId = "heat-token" }: TokenHeatProps) {
  const [cursor, setCursor] = useState<number | null>(null);

  const visit = (position: number | null) => {
    setCursor(position);
    onHover?.(position === null ? null : (tokens[position]?.value ?? null), position);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step === 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const from = cursor ?? (peak ?? 0) - step;
    visit(Math.max(0, Math.min(tokens.length - 1, from + step)));
  };
  const spoken = cursor === null ? null : tokens[cursor];

  return (
    <div
      className={styles.text}
      role="group"
      aria-label={`${label}: ${tokens.map((token) => token.text).join("")}`}
      tabIndex={0}
      onKeyDown={onKeyDown}
      onBlur={() => visit(null)}
      onMouseLeave={() => visit(null)}
    >
      {tokens.map((token, position) => (
        <span
          key={position}
          data-testid={testId}
          data-value={token.value}
          title={titleOf(token, unit)}
          className={[
            "heat",
            styles.token,
            position === cursor && styles.active,
            position === peak && styles.peak,
            token.sink && styles.sink,
            token.text === "" && styles.part,
          ].filter(Boolean).join(" ")}
          style={heatStyle(token.value, scale)}
          onMouseEnter={() => visit(position)}
        >
          {tokenInText(token.text)}
        </span>
      ))}
      <span className="visually-hidden" aria-live="polite">
        {spoken ? `${tokenSpoken(spoken.text)}: ${spoken.value > 0 ? number(spoken.value) : "silent"}` : ""}
      </span>
    </div>
  );
}

function titleOf(token: HeatToken, unit: string): string {
  const strength = token.value > 0 ? `${number(token.value)}${unit && ` ${unit}`}` : "silent";
  const value = token.text === "" ? `${strength} · part of the next character shown` : strength;
  return token.sink ? `${value} · special token or attention sink: edits leave it alone` : value;
}

/** What the colours mean, in numbers. */
export function HeatLegend({ scale, what = "activation; full at its maximum in the recording" }: {
  scale: number;
  what?: string;
}) {
  return (
    <div className={styles.legend}>
      <span className={styles.steps}>
        {legendStops(scale).map((stop) => (
          <span key={stop} className={`heat ${styles.step}`} style={heatStyle(stop, scale)}>
            {number(stop, 2)}
          </span>
        ))}
      </span>
      <span>{what}</span>
    </div>
  );
}
