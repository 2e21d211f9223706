import { fireEvent, render, screen, within } from "@testing-library/react";
import { describe, expect, it, vi } from "vitest";
import { Histogram } from "@/charts/Histogram";
import { axisEnd, ProbabilityBars, spokenChanges } from "@/charts/ProbabilityBars";
import { HeatLegend, TokenHeat } from "@/charts/TokenHeat";
import { WeightBars } from "@/charts/WeightBars";
import { equalBins } from "@/science/histogram";

const tokens = [
  { text: " in", value: 0 },
  { text: " the", value: 1.5 },
  { text: "\n", value: 3, sink: true },
];

describe("the token heat map", () => {
  it("colours by the feature's own scale and says every value as text", () => {
    render(<TokenHeat tokens={tokens} scale={6} label="Example 1" peak={2} testId="t" />);
    const [silent, half, peak] = screen.getAllByTestId("t");
    expect(silent!.getAttribute("style") ?? "").not.toContain("--heat");
    expect(silent!.title).toBe("silent");
    expect(half!.title).toBe("1.50");
    expect(half!.getAttribute("style")).toContain("34.0%");
    expect(peak!.getAttribute("style")).toContain("56.0%");
    expect(peak!.title).toContain("sink");
    expect(peak!.textContent).toBe("↵");
  });

  it("tells which value is under the pointer", () => {
    const hovered = vi.fn();
    render(<TokenHeat tokens={tokens} scale={6} label="Example 1" onHover={hovered} testId="t" />);
    fireEvent.mouseEnter(screen.getAllByTestId("t")[1]!);
    expect(hovered).toHaveBeenLastCalledWith(1.5, 1);
    fireEvent.mouseLeave(screen.getByRole("group"));
    expect(hovered).toHaveBeenLastCalledWith(null, null);
  });

  it("is walked with arrow keys, from the peak, and speaks", () => {
    const hovered = vi.fn();
    render(<TokenHeat tokens={tokens} scale={6} label="Example 1" peak={1} onHover={hovered} />);
    const text = screen.getByRole("group", { name: /Example 1/ });
    fireEvent.keyDown(text, { key: "ArrowRight" });
    expect(hovered).toHaveBeenLastCalledWith(1.5, 1);
    expect(text.querySelector("[aria-live]")!.textContent).toBe("the: 1.50");
    for (let press = 0; press < 5; press++) fireEvent.keyDown(text, { key: "ArrowLeft" });
    expect(hovered).toHaveBeenLastCalledWith(0, 0);
    expect(text.querySelector("[aria-live]")!.textContent).toBe("in: silent");
  });

  it("has a legend in numbers that ends at the scale", () => {
    render(<HeatLegend scale={3} />);
    for (const stop of ["0", "0.75", "1.5", "2.3", "3.0"]) expect(screen.getByText(stop)).toBeTruthy();
  });
});

describe("probability bars", () => {
  const rows = [
    { token: 1, text: " Paris", base: 0.4, patched: 0.1 },
    { token: 2, text: " London", base: 0.05, patched: 0.25 },
    { token: 3, text: " it", base: 0.02, patched: 0.02 },
  ];

  it("show base and patched on one axis, with the signed difference in points", () => {
    render(<ProbabilityBars rows={rows} />);
    const shown = screen.getAllByTestId("prob-row");
    expect(shown.map((row) => [row.dataset.token, row.dataset.base, row.dataset.patched])).toEqual([
      [" Paris", "0.4", "0.1"], [" London", "0.05", "0.25"], [" it", "0.02", "0.02"],
    ]);
    expect(within(shown[0]!).getByText("−30.0")).toBeTruthy();
    expect(within(shown[1]!).getByText("+20.0")).toBeTruthy();
    expect(within(shown[2]!).getByText("±0")).toBeTruthy();
    const [base, patched] = shown[0]!.querySelectorAll<HTMLElement>("[aria-hidden] span");
    expect(base!.style.width).toBe("80%");
    expect(patched!.style.width).toBe("20%");
  });

  it("end their axis at a round number above the largest", () => {
    expect(axisEnd(rows)).toBe(0.5);
    expect(axisEnd([{ token: 1, text: "", base: 0.999, patched: 0 }])).toBe(1);
    expect(axisEnd([])).toBe(0.01);
  });

  it("say the largest changes first and keep quiet about small ones", () => {
    const spoken = spokenChanges(rows).replaceAll("\u202f", " ");
    expect(spoken).toBe("Paris 40.0 % to 10.0 %, London 5.00 % to 25.0 %");
    expect(spokenChanges([{ token: 1, text: "a", base: 0.5, patched: 0.501 }])).toContain("No next token");
  });
});

describe("bars and histograms", () => {
  it("give the longest weight the full width, and negative ones another look", () => {
    const { container } = render(
      <WeightBars
        label="Suppressed"
        rows={[
          { token: 1, text: " a", weight: -4, shown: "−4" },
          { token: 2, text: "b", weight: 1, shown: "1" },
        ]}
      />,
    );
    const [negative, positive] = container.querySelectorAll<HTMLElement>("[aria-hidden] > span");
    expect([negative!.style.width, positive!.style.width]).toEqual(["100%", "25%"]);
    expect(negative!.className).not.toBe(positive!.className);
    expect(screen.getByText("␣a")).toBeTruthy();
  });

  it("read out the bin of a marked value, and others with arrow keys", () => {
    const bins = equalBins([10, 0, 7], 0, 3);
    const { rerender } = render(<Histogram title="Activations" bins={bins} axis="activation" counted="firings" />);
    expect(screen.getByText("17 firings")).toBeTruthy();
    rerender(<Histogram title="Activations" bins={bins} axis="activation" counted="firings" marked={2.5} />);
    expect(screen.getByText("2.00 to 3.00: 7 firings")).toBeTruthy();
    fireEvent.keyDown(screen.getByRole("img"), { key: "ArrowRight" });
    expect(screen.getByText("0 to 1.00: 10 firings")).toBeTruthy();
  });
});
