"""Several SAEs on the same held-out text, with intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microscope.activations import Recording, load_recorded_model
from microscope.activations.token_filters import filter_on_recording
from microscope.evaluation.report import page, sections_as_html, sections_as_markdown, write_reports
from microscope.evaluation.run import Evaluation, counted_filter, measure
from microscope.evaluation.svg import intervals
from microscope.params import CompareParams, EvaluateParams, Site
from microscope.progress import SILENT, Progress
from microscope.sae import SaeConfig, TokenFilter, read_config
from microscope.staging import staged

Table = list[list[str]]


class Difference(msgspec.Struct, kw_only=True, frozen=True):
    """FVU of one SAE minus that of the first, on the same documents; the interval resamples documents.

    ``distinguishable`` is False when the interval holds zero, and None when there are too few documents.
    """

    name: str
    difference: float
    interval: tuple[float, float] | None
    distinguishable: bool | None


class Comparison(msgspec.Struct, kw_only=True, frozen=True):
    """All evaluations, the first being the reference, and what separates the others from it."""

    evaluations: list[Evaluation]
    differences: list[Difference]


def compare(params: CompareParams, progress: Progress = SILENT) -> Comparison:
    """Evaluate SAEs of one recording one after another, loading the model once.

    With ``params.out`` the comparison is written there as JSON, Markdown and HTML, and each report in a
    folder of its own.

    Raises:
        MicroscopeError: as :func:`evaluate`.
    """
    shared = {name: getattr(params, name) for name in _SHARED}
    recording, loaded = Recording(params.activations), None
    if (params.loss_contexts or params.probe_tokens) and (params.model or recording.manifest.model.reference):
        loaded = load_recorded_model(
            recording, params.model, params.device, force=params.force, progress=progress
        )
    counted = _counted_by_all([read_config(path) for path in params.sae_path], recording)
    measured = []
    for path in params.sae_path:
        progress.log(f"Measuring {path}")
        one = EvaluateParams(sae_path=path, **shared)
        measured.append(measure(one, progress, loaded=loaded, counted=counted))
    names = _distinct([m.evaluation.name for m in measured])
    evaluations = [
        msgspec.structs.replace(m.evaluation, name=name) for m, name in zip(measured, names, strict=True)
    ]
    reference = measured[0].per_document
    comparison = Comparison(
        evaluations=evaluations,
        differences=[
            paired_difference(name, m.per_document, reference, resamples=params.bootstrap, seed=params.seed)
            for name, m in zip(names[1:], measured[1:], strict=True)
        ],
    )
    if params.out:
        _write(comparison, Path(params.out))
    return comparison


def _counted_by_all(configs: list[SaeConfig], recording: Recording) -> TokenFilter | None:
    """The tokens that every SAE's filter keeps, where these differ; None where each may use its own."""
    filters = []
    for config in configs:
        site = str(Site.parse(config.site))
        own = config.token_filter if config.token_filter.known else filter_on_recording(recording, site)
        filters.append(counted_filter(own, recording, site))
    limits = {f.max_norm for f in filters}
    if len({c.site for c in configs}) > 1 or (
        len(limits) == 1 and len({f.exclude_special for f in filters}) == 1
    ):
        return None
    return TokenFilter(
        exclude_special=any(f.exclude_special for f in filters),
        max_norm=min((limit for limit in limits if limit is not None), default=None),
    )


_SHARED = (
    "activations",
    "model",
    "loss_contexts",
    "max_tokens",
    "probe_tokens",
    "bootstrap",
    "device",
    "seed",
    "force",
)


def paired_difference(
    name: str,
    one: dict[int, list[float]],
    reference: dict[int, list[float]],
    *,
    resamples: int,
    seed: int,
) -> Difference:
    """Difference of two FVUs from (error, spread) per document; documents both have are resampled together."""
    documents = sorted(one.keys() & reference.keys())
    a, b = (np.array([sums[d] for d in documents]) for sums in (one, reference))
    difference = float(a[:, 0].sum() / a[:, 1].sum() - b[:, 0].sum() / b[:, 1].sum())
    interval = None
    if resamples and len(documents) >= 3:
        picks = np.random.default_rng(seed).integers(0, len(documents), (resamples, len(documents)))
        ratios = [s[:, 0][picks].sum(1) / s[:, 1][picks].sum(1) for s in (a, b)]
        low, high = np.quantile(ratios[0] - ratios[1], (0.025, 0.975))
        interval = (float(low), float(high))
    return Difference(
        name=name,
        difference=difference,
        interval=interval,
        distinguishable=None if interval is None else not interval[0] <= 0 <= interval[1],
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number where two are alike."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


_ROWS: list[tuple[str, str, str]] = [
    ("FVU (ordinary tokens)", "ordinary.fvu", "lower"),
    ("FVU (all tokens; not the KPI)", "every.fvu", ""),
    ("NMSE₀", "ordinary.nmse0", "lower"),
    ("Cosine", "ordinary.cosine", "higher"),
    ("Norm ratio", "ordinary.norm_ratio", ""),
    ("L0", "usage.l0", ""),
    ("Dead on held-out text", "usage.dead_share", "lower"),
    ("Dead in training", "dead_in_training", "lower"),
    ("CE with the SAE", "loss.ce_sae", "lower"),
    ("CE recovered", "loss.ce_recovered", "higher"),
    ("KL recovered", "loss.kl_recovered", "higher"),
    ("Probe AUROC, dense", "probing.auroc_dense", ""),
]


def comparison_table(comparison: Comparison) -> Table:
    """One column per SAE; the best of a row is marked where better is defined."""
    evaluations = comparison.evaluations
    table = [["Metric", *(e.name for e in evaluations)]]
    rows = list(_ROWS)
    probed = [e.probing for e in evaluations if e.probing is not None]
    for k in probed[0].auroc if probed else ():
        rows.append((f"Probe AUROC, {k} latents", f"probing.auroc.{k}", "higher"))
    for title, path, better in rows:
        values = [_at(e, path) for e in evaluations]
        if all(v is None for v in values):
            continue
        known = [v for v in values if v is not None]
        best = {"lower": min(known), "higher": max(known)}.get(better) if len(known) > 1 else None
        table.append([title, *("–" if v is None else f"{v:.4g}{' ★' if v == best else ''}" for v in values)])
    return table


def difference_table(comparison: Comparison) -> Table:
    """FVU differences with their intervals in words."""
    first = comparison.evaluations[0].name
    table = [["SAE", f"FVU minus {first}", "95 % interval", "Reading"]]
    for d in comparison.differences:
        ends = "–" if d.interval is None else f"{d.interval[0]:+.4f} to {d.interval[1]:+.4f}"
        reading = {None: "too few documents", False: "no difference shown", True: "better"}[d.distinguishable]
        if d.distinguishable and d.difference > 0:
            reading = "worse"
        table.append([d.name, f"{d.difference:+.4f}", ends, reading])
    return table


def summarise_comparison(comparison: Comparison) -> dict[str, Any]:
    """A comparison in plain values."""
    from microscope.evaluation.run import summarise

    return {
        "saes": [{"name": e.name, **summarise(e)} for e in comparison.evaluations],
        "differences": msgspec.to_builtins(comparison.differences),
        "table": comparison_table(comparison),
    }


def _at(evaluation: Evaluation, path: str) -> float | None:
    value: Any = evaluation
    for name in path.split("."):
        if value is None:
            return None
        value = value[int(name)] if isinstance(value, dict) else getattr(value, name)
    return None if value is None else float(value)


def _write(comparison: Comparison, out: Path) -> None:
    with staged(out, last=("comparison.json",)) as folder:
        _write_into(comparison, folder)


def _write_into(comparison: Comparison, folder: Path) -> None:
    for evaluation in comparison.evaluations:
        write_reports(evaluation, folder / evaluation.name)
    (folder / "comparison.json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=1))
    title = f"Comparison of {len(comparison.evaluations)} SAEs"
    sections = [("Metrics", comparison_table(comparison))]
    if comparison.differences:
        sections.append(("Differences on the same documents", difference_table(comparison)))
    (folder / "comparison.md").write_text(
        f"# {title}\n\n{_PREFACE}\n\n{sections_as_markdown(sections)}\n", encoding="utf-8"
    )
    fvu = [(e.name, e.ordinary.fvu, e.ordinary.fvu_interval) for e in comparison.evaluations]
    recovered = [
        (e.name, e.loss.ce_recovered, e.loss.ce_recovered_interval)
        for e in comparison.evaluations
        if e.loss is not None and e.loss.ce_recovered is not None
    ]
    charts = intervals(
        fvu, title="FVU with intervals", axis="FVU, ordinary tokens (lower is better)", limit=0.15
    )
    if recovered:
        charts += intervals(
            recovered, title="CE recovered", axis="CE recovered (higher is better)", limit=0.99
        )
    body = f"<h1>{title}</h1><p>{_PREFACE}</p>{charts}{sections_as_html(sections)}"
    (folder / "comparison.html").write_text(page(title, body), encoding="utf-8")


_PREFACE = (
    "All on the same held-out tokens. ★ marks the best of a row. Intervals are 95 % bootstrap intervals over "
    "documents; those of differences resample the same documents for both."
)
