"""Small charts as inline SVG: no scripts, readable in any viewer, values in tooltips."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_LEFT, _TOP, _BOTTOM = 56, 12, 44


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    title: str,
    axis: str,
    ticks: Sequence[tuple[float, str]],
) -> str:
    """Bars side by side; ``ticks`` are positions along the axis (in bars) with their text."""
    width, height, top = 640, 180, max(values, default=0) or 1
    step = width / max(len(values), 1)
    shapes = "".join(
        f"<rect x='{_LEFT + i * step:.1f}' y='{_TOP + height - height * v / top:.1f}' width='{max(step - 1, 1):.1f}' "
        f"height='{height * v / top:.1f}'><title>{escape(label)}: {v:g}</title></rect>"
        for i, (label, v) in enumerate(zip(labels, values, strict=True))
    )
    marks = "".join(
        f"<text x='{_LEFT + at * step:.0f}' y='{_TOP + height + 16}' text-anchor='middle'>{escape(text)}</text>"
        for at, text in ticks
    )
    return _frame(width, height, title, axis, f"{top:.4g}", "0", shapes + marks)


def line(x: Sequence[float], y: Sequence[float], *, title: str, axis: str) -> str:
    """One line from zero up."""
    width, height, top = 640, 180, max(y, default=0) or 1
    span = (x[-1] - x[0]) or 1
    points = [
        (_LEFT + width * (a - x[0]) / span, _TOP + height - height * b / top)
        for a, b in zip(x, y, strict=True)
    ]
    dots = "".join(
        f"<circle cx='{px:.1f}' cy='{py:.1f}' r='3'><title>{a:g}: {b:.4g}</title></circle>"
        for (px, py), a, b in zip(points, x, y, strict=True)
    )
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    ends = "".join(
        f"<text x='{at:.0f}' y='{_TOP + height + 16}' text-anchor='middle'>{value:g}</text>"
        for at, value in ((_LEFT, x[0]), (_LEFT + width, x[-1]))
    )
    return _frame(width, height, title, axis, f"{top:.4g}", "0", f"<polyline points='{path}'/>{dots}{ends}")


def intervals(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]],
    *,
    title: str,
    axis: str,
    limit: float | None,
) -> str:
    """A dot per row with its interval, and a goal as a dashed line."""
    known = [v for _, value, ends in rows for v in (value, *(ends or ()))] + (
        [] if limit is None else [limit]
    )
    low, high = min(known), max(known)
    margin = 0.05 * ((high - low) or abs(high) or 1)
    low, high = low - margin, high + margin
    width, row_height, left = 480, 26, 220
    height = row_height * len(rows)

    def at(value: float) -> float:
        return left + width * (value - low) / (high - low)

    shapes = []
    for i, (name, value, ends) in enumerate(rows):
        y = _TOP + row_height * (i + 0.5)
        shown = f"{value:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")
        shapes.append(f"<text x='{left - 8}' y='{y + 4:.0f}' text-anchor='end'>{escape(name[:32])}</text>")
        if ends:
            shapes.append(f"<line x1='{at(ends[0]):.1f}' x2='{at(ends[1]):.1f}' y1='{y}' y2='{y}'/>")
        shapes.append(
            f"<circle cx='{at(value):.1f}' cy='{y}' r='4'><title>{escape(name)}: {shown}</title></circle>"
        )
    if limit is not None:
        shapes.append(
            f"<line class='goal' x1='{at(limit):.1f}' x2='{at(limit):.1f}' y1='{_TOP}' y2='{_TOP + height}'>"
            f"<title>goal {limit:g}</title></line>"
        )
    shapes += [
        f"<text x='{at(v):.0f}' y='{_TOP + height + 16}' text-anchor='middle'>{v:.3g}</text>"
        for v in (low + margin, high - margin)
    ]
    view = f"0 0 {left + width + 30} {height + _TOP + _BOTTOM}"
    return (
        f"<svg viewBox='{view}' role='img' aria-label='{escape(title, quote=True)}'>{''.join(shapes)}"
        f"<text x='{left + width / 2}' y='{_TOP + height + 36}' text-anchor='middle'>{escape(axis)}</text></svg>"
    )


def _frame(width: int, height: int, title: str, axis: str, top: str, bottom: str, shapes: str) -> str:
    view = f"0 0 {width + _LEFT + 24} {height + _TOP + _BOTTOM}"
    return (
        f"<svg viewBox='{view}' role='img' aria-label='{escape(title, quote=True)}'>{shapes}"
        f"<text x='{_LEFT - 6}' y='{_TOP + 8}' text-anchor='end'>{top}</text>"
        f"<text x='{_LEFT - 6}' y='{_TOP + height}' text-anchor='end'>{bottom}</text>"
        f"<text x='{_LEFT + width / 2}' y='{_TOP + height + 38}' text-anchor='middle'>{escape(axis)}</text></svg>"
    )
