"""Fit what cannot be held: least squares where edits act, then distillation around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, module_at
from microscope.params import EditPlan, Site
from microscope.params.traits import NO_MATRICES
from microscope.patching.adapters import LowRank
from microscope.patching.apply import Saes
from microscope.patching.fitting.distil import Student, agreement, distil
from microscope.patching.fitting.least_squares import Solution, least_squares, projections
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel
from microscope.patching.program import Adapters
from microscope.patching.weights import WeightChange, held_hooks, weight_of
from microscope.patching.writing import find_writing
from microscope.progress import Progress

_LEAST_SQUARES_SHARE = 0.4
_VALIDATION = 16


class FitReport(msgspec.Struct, kw_only=True, frozen=True):
    """How a fit went. KL in nats on validation text, before and after distillation.

    ``r2`` and ``leak`` are of the least squares, by block: the share of the edits' squared norm explained
    where they fire, and what is added elsewhere, relative to it. ``kl_nothing`` is the KL of the untouched
    model, clean and where the patch acts, and ``share`` what part of the latter the fit makes up for.
    ``tokens`` of ``planned_tokens`` were read by the least squares and ``steps`` of ``planned_steps`` done;
    ``cut_short`` says so in words when the time was up first, and is empty otherwise.
    """

    rank: int
    modules: tuple[str, ...]
    tokens: int
    r2: dict[str, float]
    leak: dict[str, float]
    kl_clean: tuple[float, float]
    kl_trigger: tuple[float, float]
    steps: int
    seconds: float
    kl_nothing: tuple[float, float] | None = None
    share: float | None = None
    planned_tokens: int | None = None
    planned_steps: int | None = None
    cut_short: str = ""


@dataclass(frozen=True)
class FitOptions:
    """Rank of the update, steps of its distillation, blocks either side it may change, and the seed.

    ``avoid`` are last parts of the names of matrices that the target cannot change.
    ``seconds`` is when it stops, done or not: set beyond what the steps take, it changes nothing.
    """

    rank: int = 8
    steps: int = 120
    seconds: float = 1800.0
    blocks: int = 1
    seed: int = 0
    avoid: tuple[str, ...] = ()


def fit(
    loaded: LoadedModel,
    plan: EditPlan,
    rest: EditPlan,
    held: WeightChange,
    saes: Saes,
    adapters: Adapters,
    windows: Sequence[TextWindow],
    options: FitOptions,
    progress: Progress,
) -> tuple[dict[str, LowRank], FitReport]:
    """Deltas of uniform rank that stand in for the edits of ``rest``.

    Args:
        loaded: the model, in float32.
        plan: the whole patch, which is to be met.
        rest: its edits that the target cannot hold; each acts at a residual site.
        held: what the target holds exactly.
        windows: training text.

    Raises:
        MicroscopeError: ``never_fires`` when no edit acts anywhere in the text, ``fit_failed`` when the
            untouched model is as near to the patch as what was fitted, ``not_possible`` when no block in reach has
            a matrix that could be changed.
    """
    started = progress.now()
    teacher = PatchedModel(loaded, plan, saes, adapters)
    layers = sorted({Site.parse(edit.site).layer for edit in rest.active()})
    if not starting_factors(loaded, layers, {}, options):
        raise MicroscopeError("not_possible", NO_MATRICES, "The runtime bundle is exact.")
    solutions: dict[int, Solution] = {}
    planned = read = sum(len(w.tokens) for w in windows)
    # Behind a norm what a matrix writes is not what reaches the stream: those blocks are left to distillation.
    written = {weight.path for weight in find_writing(loaded).all_weights}
    wanted = {
        layer: held.constants.get(layer)
        for layer in layers
        if (paths := projections(loaded, layer, options.avoid))
        and all(f"{path}.weight" in written for path in paths)
    }
    if wanted:
        deadline = started + _LEAST_SQUARES_SHARE * options.seconds
        solutions, read = least_squares(
            loaded, teacher, wanted, windows, options.rank, deadline, progress, options.avoid
        )
        if not solutions:
            raise MicroscopeError(
                "never_fires",
                "No edit of the patch acts anywhere in the text the fit was given.",
                "Give text in which its features fire, or export the runtime bundle.",
            )
    validation = _validation_part(windows)
    training = [w for w in windows if not any(w is a for a in validation)] or list(windows)
    untouched = agreement(None, teacher, validation)
    # The least squares look at one block; behind the others their solution may be worse than none.
    starts = [
        Student(loaded, lambda: held_hooks(loaded, held), starting_factors(loaded, layers, s, options))
        for s in (solutions, {})
        if s or not solutions
    ]
    student = min(starts, key=lambda s: agreement(s, teacher, validation).score(untouched))
    factors, before, after, steps, late = distil(
        student,
        teacher,
        training,
        validation,
        untouched=untouched,
        planned=options.steps,
        deadline=started + options.seconds,
        seed=options.seed,
        progress=progress,
    )
    report = FitReport(
        rank=options.rank,
        modules=tuple(sorted(factors)),
        tokens=read,
        r2={f"resid_post.{layer}": s.r2 for layer, s in solutions.items()},
        leak={f"resid_post.{layer}": s.leak for layer, s in solutions.items()},
        kl_clean=(before.clean, after.clean),
        kl_trigger=(before.trigger, after.trigger),
        steps=steps,
        seconds=progress.now() - started,
        kl_nothing=(untouched.clean, untouched.trigger),
        share=1 - after.trigger / untouched.trigger if untouched.trigger > 0 else None,
        planned_tokens=planned,
        planned_steps=options.steps,
        cut_short=_cut_short(read, planned, steps, options, late),
    )
    if report.cut_short:
        progress.log(f"The fit was cut short: {report.cut_short}", "warning")
    _refuse_failed(report)
    return {path: LowRank(f.a.cpu(), f.b.cpu()) for path, f in factors.items()}, report


def _cut_short(read: int, planned: int, steps: int, options: FitOptions, late: bool) -> str:
    if read == planned and not late:
        return ""
    return (
        f"{options.seconds:g} s were enough for {read:,} of {planned:,} tokens of the least squares and "
        f"{steps} of {options.steps} steps of distillation."
    )


def _refuse_failed(report: FitReport) -> None:
    """Raises ``fit_failed`` unless the fit is nearer to the patch than nothing at all."""
    untouched = report.kl_nothing
    if report.share is None or untouched is None:
        raise MicroscopeError(
            "never_fires",
            "The patch changes no prediction in the text that the fit is judged by.",
            "Give text in which its features fire, or export the runtime bundle.",
        )
    if report.share > 0:
        return
    cut = f" It was cut short: {report.cut_short}" if report.cut_short else ""
    raise MicroscopeError(
        "fit_failed",
        f"The fit is no better than nothing: where the patch acts, its KL to the patch is "
        f"{report.kl_trigger[1]:.3g} nats, that of the untouched model {untouched[1]:.3g}.{cut}",
        "Give it more time and steps, a higher rank, more blocks or more text; or export the runtime bundle, "
        "which is exact.",
    )


def _validation_part(windows: Sequence[TextWindow]) -> list[TextWindow]:
    """A few windows to judge by: half of them firing, at most a third of the text."""
    room = max(1, min(_VALIDATION, len(windows) // 3))
    firing = [w for w in windows if w.fires][-((room + 1) // 2) :]
    return firing + [w for w in windows if not w.fires][-(room - len(firing)) :]


def starting_factors(
    loaded: LoadedModel, layers: Sequence[int], solutions: Mapping[int, Solution], options: FitOptions
) -> dict[str, LowRank]:
    """Factors of one rank for all modules in reach: the solved ones first, zeros in B elsewhere."""
    generator = torch.Generator().manual_seed(options.seed)
    reach = {
        layer + step
        for layer in layers
        for step in range(-options.blocks, options.blocks + 1)
        if 0 <= layer + step < loaded.n_layers
    }
    solved = {path: delta for s in solutions.values() for path, delta in s.deltas.items()}
    out = {}
    for layer in sorted(reach):
        for path in projections(loaded, layer, options.avoid):
            d_out, d_in = weight_of(module_at(loaded.model, path)).shape
            a = torch.randn(options.rank, d_in, generator=generator) / d_in**0.5
            b = torch.zeros(d_out, options.rank)
            if path in solved:
                known = solved[path]
                a[: len(known.a)], b[:, : len(known.a)] = known.a, known.b
            out[path] = LowRank(a, b)
    return out
