"""An evaluation as a page to read: Markdown and self-contained HTML."""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path

import msgspec

from microscope.evaluation.reconstruction import Reconstruction
from microscope.evaluation.run import Evaluation
from microscope.evaluation.svg import bars, line
from microscope.staging import staged

Table = list[list[str]]

_ROWS = [
    ("FVU", "fvu", "Σ‖x−x̂‖² / Σ‖x−μ‖²"),
    ("NMSE₀", "nmse0", "Σ‖x−x̂‖² / Σ‖x‖²"),
    ("Per-token FVU", "per_token_fvu", "mean of ‖x−x̂‖² / ‖x−μ‖²"),
    ("MSE", "mse", "mean over tokens and dimensions, raw units"),
    ("Cosine", "cosine", "mean of cos(x, x̂)"),
    ("Norm ratio", "norm_ratio", "mean of ‖x̂‖ / ‖x‖"),
    ("Relative bias", "relative_bias", "E‖x̂‖² / E⟨x, x̂⟩ (below 1: shrinkage)"),
]


def goal_table(evaluation: Evaluation) -> Table:
    """Each goal with its value, limit, verdict and formula."""
    table = [["Goal", "Value", "Limit", "Verdict", "Formula"]]
    for goal in evaluation.goals:
        sign = "≤" if goal.better == "lower" else "≥"
        verdict = "not measured" if goal.passed is None else "pass" if goal.passed else "fail"
        value = "–" if goal.value is None else f"{goal.value:.4f}"
        table.append([goal.name, value, f"{sign} {goal.limit:g}", verdict, goal.formula])
    return table


def reconstruction_table(evaluation: Evaluation) -> Table:
    """Every reconstruction metric under both token filters."""
    columns = [evaluation.ordinary, evaluation.every]
    table = [
        ["Metric", f"Ordinary tokens (n = {columns[0].n})", f"All tokens (n = {columns[1].n})", "Formula"]
    ]
    for title, name, formula in _ROWS:
        table.append([title, *(_value(c, name) for c in columns), formula])
    return table


def loss_table(evaluation: Evaluation) -> Table:
    """Cross-entropy and KL of the splice under both token filters; empty when not measured."""
    table = [["", "Model", "SAE spliced in", "Zero ablation", "Recovered"]]
    for loss, tokens in ((evaluation.loss, "ordinary tokens"), (evaluation.loss_every, "all tokens")):
        if loss is None:
            continue
        recovered = _share(loss.ce_recovered) + _interval(loss.ce_recovered_interval)
        numbers = [f"{v:.4f}" for v in (loss.ce_model, loss.ce_sae, loss.ce_zero)]
        table.append([f"Cross-entropy, {tokens} replaced", *numbers, recovered])
        divergences = [f"{loss.kl_sae:.4f}", f"{loss.kl_zero:.4f}", _share(loss.kl_recovered)]
        table.append([f"KL from model, {tokens} replaced", "0", *divergences])
    return table if len(table) > 1 else []


def probing_table(evaluation: Evaluation) -> Table:
    """AUROC of sparse probes by task; empty when not measured."""
    probing = evaluation.probing
    if probing is None:
        return []
    counts = list(probing.auroc)
    table = [
        ["Property of the text", "Share", *(f"{k} latents" for k in counts), "All dimensions", "Latents"]
    ]
    for task in probing.tasks:
        scores = [f"{task.auroc[k]:.3f}" for k in counts]
        latents = ", ".join(map(str, task.latents))
        table.append([task.name, f"{task.positive_share:.1%}", *scores, f"{task.auroc_dense:.3f}", latents])
    means = [f"{probing.auroc[k]:.3f}" for k in counts]
    table.append(["mean", "", *means, f"{probing.auroc_dense:.3f}", ""])
    return table


def usage_table(evaluation: Evaluation) -> Table:
    """L0 and dead latents."""
    usage, training = evaluation.usage, evaluation.dead_in_training
    return [
        ["Quantity", "Value"],
        ["L0 (active latents per ordinary token)", f"{usage.l0:.2f}"],
        ["Dead on held-out text", f"{usage.dead_share:.2%}"],
        ["Dead at the end of training", "–" if training is None else f"{training:.2%}"],
    ]


def write_reports(evaluation: Evaluation, folder: Path) -> None:
    """Write report.json, report.md and report.html into a folder."""
    with staged(folder, last=("report.json",)) as work:
        (work / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=1))
        (work / "report.md").write_text(markdown_report(evaluation), encoding="utf-8")
        (work / "report.html").write_text(html_report(evaluation), encoding="utf-8")


def markdown_report(evaluation: Evaluation) -> str:
    """The report as Markdown."""
    text = sections_as_markdown(_sections(evaluation))
    return f"# {_title(evaluation)}\n\n{_preface(evaluation)}\n\n**{evaluation.honesty}**\n\n{text}\n"


def html_report(evaluation: Evaluation) -> str:
    """The report as one HTML file without scripts or outside resources."""
    title = _title(evaluation)
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_preface(evaluation))}</p>",
        f"<p><strong>{escape(evaluation.honesty)}</strong></p>",
        sections_as_html(_sections(evaluation)),
        "<h2>Firing rates of latents</h2>",
        _density_chart(evaluation),
        "<h2>FVU by position in the context</h2>",
        line(
            evaluation.positions.start,
            evaluation.positions.fvu,
            title="FVU by position in the context",
            axis="token of the context window",
        ),
    ]
    return page(title, "\n".join(body))


def page(title: str, body: str) -> str:
    """A self-contained HTML page."""
    return _PAGE.format(title=escape(title), body=body)


def sections_as_markdown(sections: list[tuple[str, Table]]) -> str:
    """Titled tables one below another."""
    return "\n\n".join(f"## {title}\n\n{_markdown(table)}" for title, table in sections)


def sections_as_html(sections: list[tuple[str, Table]]) -> str:
    """Titled tables one below another."""
    return "\n".join(f"<h2>{escape(title)}</h2>{_html(table)}" for title, table in sections)


def _title(evaluation: Evaluation) -> str:
    where = evaluation.site + (f" → {evaluation.site_out}" if evaluation.site_out else "")
    return f"SAE {evaluation.name} ({evaluation.sae[:12]}) at {where}"


def _sections(evaluation: Evaluation) -> list[tuple[str, Table]]:
    found = [
        ("Goals", goal_table(evaluation)),
        ("Reconstruction", reconstruction_table(evaluation)),
        ("Effect on the model's loss", loss_table(evaluation)),
        ("Use of latents", usage_table(evaluation)),
        ("k-sparse probing (AUROC on documents the probe was not fitted on)", probing_table(evaluation)),
    ]
    return [(title, table) for title, table in found if table]


def _preface(evaluation: Evaluation) -> str:
    spliced = (
        "What the SAE's token filter leaves out passes through untouched when it is spliced into the model."
        if evaluation.token_filter.leaves_out
        else "Spliced into the model, the SAE replaces every token: it was trained on all."
    )
    return (
        f"Measured on {evaluation.every.n} held-out tokens of {evaluation.every.documents} documents that training never saw. "
        f"“Ordinary” leaves out {evaluation.filter_rule}. {spliced} "
        "Intervals are 95 % bootstrap intervals over documents."
    )


def _value(column: Reconstruction, name: str) -> str:
    text = f"{getattr(column, name):.4g}"
    return text + _interval(column.fvu_interval) if name == "fvu" else text


def _share(value: float | None) -> str:
    return "nothing to recover" if value is None else f"{value:.4f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _html(table: Table) -> str:
    head = "".join(f"<th scope='col'>{escape(c)}</th>" for c in table[0])
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in table[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _density_chart(evaluation: Evaluation) -> str:
    counts, edges = evaluation.usage.density_counts, evaluation.usage.density_edges
    return bars(
        [f"10^{low:.1f} to 10^{high:.1f}" for low, high in itertools.pairwise(edges)],
        counts,
        title="Histogram of firing rates",
        axis="share of tokens on which a latent fires",
        ticks=[((d + 6) * len(counts) / 6, f"10{_superscript(d)}") for d in range(-6, 1)],
    )


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem; }}
th, td {{ border: 1px solid #8886; padding: .3rem .6rem; text-align: left; }}
svg {{ max-width: 100%; font-size: 12px; fill: currentColor; }} rect, circle {{ fill: #3b7dd8; }}
polyline {{ fill: none; stroke: #3b7dd8; stroke-width: 2; }} line {{ stroke: #3b7dd8; stroke-width: 2; }}
.goal {{ stroke: #c26a00; stroke-dasharray: 4 3; }}
</style></head><body>
{body}
</body></html>
"""
