import { MantineProvider } from "@mantine/core";
import { fireEvent, render, screen } from "@testing-library/react";
import { useState } from "react";
import { describe, expect, it } from "vitest";
import { StrengthControl } from "@/pages/lab/StrengthControl";
import { newCard, strengthOf, withStrength } from "@/patches/plan";
import { KINDS } from "./kindsRig";

const feature = { saeId: "s", sae: "f", index: 4, site: "resid_post.2", p999: null };

/** The box, and the strength that acts. */
function rig() {
  const acts = { strength: NaN };
  function Held() {
    const [card, setCard] = useState(withStrength(newCard(feature, KINDS.scale), 3));
    acts.strength = strengthOf(card);
    return <MantineProvider><StrengthControl card={card} onChange={setCard} onEnd={() => undefined} /></MantineProvider>;
  }
  render(<Held />);
  const box = () => screen.getByTestId<HTMLInputElement>("strength");
  return { acts, box };
}

describe("the strength of an edit", () => {
  it.each([["2.5", 2.5], ["-12", -12], ["", 3], ["99999999999999999999", 3]])("typed as %j, box and edit agree", (text, strength) => {
    const { acts, box } = rig();
    fireEvent.change(box(), { target: { value: text } });
    fireEvent.blur(box());
    expect(acts.strength).toBe(strength);
    expect(parseFloat(box().value)).toBe(strength);
  });

  it.each([["1e-3", 0.001], ["1.5e2", 150], ["−4", -4], ["NaN", 3], ["1e400", 3], ["1e30", 3]])("pasted as %j, is the number it says or none", (text, strength) => {
    const { acts, box } = rig();
    expect(fireEvent.paste(box(), { clipboardData: { getData: () => text } })).toBe(false); // not left to the box
    expect(acts.strength).toBe(strength);
    expect(parseFloat(box().value)).toBe(strength);
  });
});
