import { fireEvent, render, screen } from "@testing-library/react";
import { describe, expect, it } from "vitest";
import { IntervalChart } from "@/charts/IntervalChart";
import { LineChart } from "@/charts/LineChart";
import { ends, scale, ticks } from "@/charts/scale";

const axis = (low: number, high: number, logarithmic = false) => ({ low, high, logarithmic, show: String });

describe("axes", () => {
  it("have round ticks", () => {
    expect(ticks(axis(0, 3.05), 5)).toEqual([0, 1, 2, 3]);
    expect(ticks(axis(-6, 0), 3)).toEqual([-6, -4, -2, 0]);
    expect(ticks(axis(1, 1), 5)).toEqual([1]);
    expect(ticks(axis(0, 0.3), 5)).toEqual([0, 0.1, 0.2, 0.3]);
  });

  it("have 1-2-5 ticks when logarithmic, or powers where there would be too many", () => {
    expect(ticks(axis(0.1, 1, true), 4)).toEqual([0.1, 0.2, 0.5, 1]);
    expect(ticks(axis(0.001, 100, true), 4)).toEqual([0.001, 0.01, 0.1, 1, 10, 100]);
  });

  it("hold every value, zero included unless logarithmic", () => {
    expect(ends([2, 10], false)).toEqual({ low: 0, high: 10.8 });
    expect(ends([0, 0], false)).toEqual({ low: 0, high: 1 });
    expect(ends([0.13, 0.9], true)).toEqual({ low: 0.1, high: 1 });
    expect(ends([], true)).toEqual({ low: 0, high: 1 });
  });

  it("place values between their ends", () => {
    expect(scale(axis(0, 10), 0, 100)(2.5)).toBe(25);
    expect(scale(axis(0.1, 10, true), 100, 0)(1)).toBeCloseTo(50);
    expect(scale(axis(3, 3), 0, 100)(3)).toBe(50);
  });
});

describe("curves", () => {
  const series = { x: [0, 100, 200, 300], y: [1, 0.5, null, 0.2] };
  const readout = (container: HTMLElement) => container.querySelector("figcaption span + span")!.textContent;

  it("say their newest value, and others with arrow keys", () => {
    const { container } = render(<LineChart title="FVU" xLabel="tokens" series={series} logarithmic />);
    expect(readout(container)).toBe("0.200 at 300 tokens");
    const drawing = screen.getByRole("img");
    fireEvent.keyDown(drawing, { key: "ArrowRight" });
    fireEvent.keyDown(drawing, { key: "ArrowRight" });
    expect(readout(container)).toBe("0.500 at 100 tokens");
    fireEvent.blur(drawing);
    expect(readout(container)).toBe("0.200 at 300 tokens");
  });

  it("are broken where a value is missing", () => {
    const { container } = render(<LineChart title="FVU" xLabel="tokens" series={series} />);
    const path = container.querySelector("path")!.getAttribute("d")!;
    expect(path.match(/M/g)).toHaveLength(2);
    expect(path.match(/L/g)).toHaveLength(1);
  });

  it("show a run that has one point, or none yet", () => {
    const { container, rerender } = render(<LineChart title="FVU" xLabel="tokens" series={{ x: [5], y: [0.3] }} />);
    expect(container.querySelectorAll("circle")).toHaveLength(1);
    rerender(<LineChart title="FVU" xLabel="tokens" series={{ x: [], y: [] }} />);
    expect(readout(container)).toBe("");
  });
});

describe("intervals", () => {
  it("lie between their ends, and the goal among them", () => {
    const rows = [{ name: "TopK", value: 0.2, low: 0.1, high: 0.3 }];
    const { container } = render(<IntervalChart title="FVU" goal={0.5} rows={rows} />);
    const [goal, interval] = container.querySelectorAll("line");
    const x = (line: Element | undefined, end: string) => Number(line!.getAttribute(end));
    expect(x(interval, "x1")).toBeLessThan(x(interval, "x2"));
    expect(x(interval, "x2")).toBeLessThan(x(goal, "x1"));
    expect(screen.getByRole("img").getAttribute("aria-label")).toBe("FVU. TopK 0.200, 0.100 to 0.300. Goal 0.500.");
  });
});
