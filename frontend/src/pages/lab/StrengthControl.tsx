import { NumberInput, Slider } from "@mantine/core";
import { useState, type ClipboardEvent, type FocusEvent } from "react";
import { parseNumber } from "@/forms/fields";
import { measureOf, snapped, strengthOf, targetOf, withStrength, type EditCard } from "@/patches/plan";
import { unitWords } from "@/patches/words";
import { number } from "@/science/format";
import styles from "./Lab.module.css";

/** Longer numbers the box would show and not hand on. */
const LARGEST = 1e8;

interface StrengthControlProps {
  card: EditCard;
  onChange: (card: EditCard) => void;
  onEnd: () => void;
}

/** Slider and number box of one edit. The box takes what lies beyond the slider. */
export function StrengthControl({ card, onChange, onEnd }: StrengthControlProps) {
  const [round, setRound] = useState(0);
  const { slider, neutral, counts, title } = card.kind;
  if (!slider) return null;
  const strength = strengthOf(card);
  const measure = measureOf(card);
  const what = `Strength of ${title.toLowerCase()}, ${targetOf(card)}`;
  const set = (value: number) => onChange(withStrength(card, snapped(value, slider.step)));
  // The box drops letters one by one: of "1e-3" it would make 13.
  const paste = (event: ClipboardEvent<HTMLInputElement>) => {
    const text = event.clipboardData.getData("text");
    if (/^[\d.]*$/.test(text.trim())) return;
    event.preventDefault();
    const value = parseNumber(text.replace("−", "-"));
    if (value !== null && Math.abs(value) <= LARGEST) onChange(withStrength(card, snapped(value, 0.0001)));
  };
  // A box left without a number shows again what acts.
  const leave = (event: FocusEvent<HTMLInputElement>) => {
    if (parseNumber(event.currentTarget.value.replace("×", "")) === null) setRound(round + 1);
    onEnd();
  };
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
        marks={neutral === null ? undefined : [{ value: neutral }]}
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
        onPaste={paste}
        onBlur={leave}
        key={round}
        min={-LARGEST}
        max={LARGEST}
        clampBehavior="strict"
        step={slider.step}
        decimalScale={4}
        aria-label={`${what}, as a number`}
        suffix=" ×"
        title={measure ? `${number(strength)} × ${unitWords(measure.unit)} = ${number(strength * measure.value)} ${counts === "length" ? "in the residual stream" : "as activation"}` : "a factor"}
        data-testid="strength"
      />
    </div>
  );
}
