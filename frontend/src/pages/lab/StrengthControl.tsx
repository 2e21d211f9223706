import { NumberInput, Slider } from "@mantine/core";
import { KINDS, measureOf, snapped, strengthOf, targetOf, withStrength, type EditCard } from "@/patches/plan";
import { unitWords } from "@/patches/words";
import { number } from "@/science/format";
import styles from "./Lab.module.css";

interface StrengthControlProps {
  card: EditCard;
  onChange: (card: EditCard) => void;
  onEnd: () => void;
}

/** Slider and number box of one edit. The box takes what lies beyond the slider. */
export function StrengthControl({ card, onChange, onEnd }: StrengthControlProps) {
  const facts = KINDS[card.kind];
  const slider = facts.slider;
  if (!slider) return null;
  const strength = strengthOf(card);
  const measure = measureOf(card);
  const what = `Strength of ${KINDS[card.kind].title.toLowerCase()}, ${targetOf(card)}`;
  const set = (value: number) => onChange(withStrength(card, snapped(value, slider.step)));
  return (
    <div className={styles.strength}>
      <Slider
        min={slider.min}
        max={slider.max}
        step={slider.step}
        value={Math.min(slider.max, Math.max(slider.min, strength))}
        onChange={set}
        onChangeEnd={onEnd}
        label={(value) => number(value)}
        marks={facts.neutral === null ? undefined : [{ value: facts.neutral }]}
        size="sm"
        thumbLabel={what}
        data-testid="strength-slider"
      />
      <NumberInput
        size="xs"
        value={strength}
        onChange={(value) => {
          if (typeof value === "number" && Number.isFinite(value)) onChange(withStrength(card, value));
        }}
        onBlur={onEnd}
        step={slider.step}
        decimalScale={4}
        aria-label={`${what}, as a number`}
        suffix=" ×"
        title={measure ? `${number(strength)} × ${unitWords(measure.unit)} = ${number(strength * measure.value)} ${facts.counts === "length" ? "in the residual stream" : "as activation"}` : "a factor"}
        data-testid="strength"
      />
    </div>
  );
}
