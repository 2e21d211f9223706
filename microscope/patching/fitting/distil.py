"""The second step of a fit: low-rank factors trained so that the model predicts what the patched one predicts.

Loss: KL(patched ‖ fitted) over all positions and where the patch acts, each in units of what a certificate
allows. The best state on validation text is kept, so the result is never worse than the start. Its length
is a number of steps, so that equal inputs give equal factors on any machine; the time is only a stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microscope.models import LoadedModel
from microscope.patching.adapters import LowRank
from microscope.patching.fitting.least_squares import batched, padded, prompts_of
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel, add_deltas
from microscope.progress import Progress

# What a certificate allows: mean KL on all text, and the share of the patch's effect that may be lost.
CLEAN_KL, LOST = 0.01, 0.1
_BATCH, _CHECK_STEPS = 4, 10
_RATE = 4e-3
# Good enough: a fifth of what is allowed.
_ENOUGH = 0.2


@dataclass(frozen=True)
class Agreement:
    """Mean KL(patched ‖ ·) in nats over all positions, and over those where the patch acts."""

    clean: float
    trigger: float

    def score(self, untouched: Agreement) -> float:
        """The worse of the two as a multiple of what is allowed; ``untouched`` is that of the untouched model."""
        allowed = LOST * untouched.trigger
        lost = self.trigger / allowed if allowed > 0 else 0.0
        return max(self.clean / CLEAN_KL, lost)


class Student:
    """A model with trainable deltas beside whatever it holds exactly."""

    def __init__(self, loaded: LoadedModel, fixed: Any, start: Mapping[str, LowRank]) -> None:
        self._loaded, self._fixed = loaded, fixed
        self.factors = {
            path: LowRank(f.a.clone().to(loaded.device), f.b.clone().to(loaded.device))
            for path, f in start.items()
        }

    def parameters(self) -> list[Tensor]:
        """All factors."""
        return [t for pair in self.factors.values() for t in pair]

    def logits(self, tokens: Tensor) -> Tensor:
        """``[batch, positions, vocabulary]``."""
        handles = [*add_deltas(self._loaded.model, self.factors), *self._fixed()]
        try:
            out: Tensor = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return out

    def frozen(self) -> dict[str, LowRank]:
        """A copy of the factors."""
        return {p: LowRank(f.a.detach().clone(), f.b.detach().clone()) for p, f in self.factors.items()}


def distil(
    student: Student,
    teacher: PatchedModel,
    windows: Sequence[TextWindow],
    validation: Sequence[TextWindow],
    *,
    untouched: Agreement,
    planned: int,
    deadline: float,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, LowRank], Agreement, Agreement, int, bool]:
    """Train the student's factors in place.

    Args:
        untouched: agreement of the untouched model on validation text.
        planned: steps, fewer when the time is up or the student is good enough before.
        deadline: when it stops.

    Returns:
        The best factors, agreement on validation text before and after, the steps done, and whether they
        were ended by the deadline.
    """
    before = best = agreement(student, teacher, validation)
    kept = student.frozen()
    steps, late = 0, False
    order = torch.Generator().manual_seed(seed)
    parameters = [p.requires_grad_() for p in student.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=_RATE)
    with progress.phase("distilling", max(planned, 1), "steps"):
        while steps < planned and best.score(untouched) > _ENOUGH:
            late = progress.now() >= deadline
            if late:
                break
            for group in optimiser.param_groups:
                group["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * steps / planned))
            loss = _loss(student, teacher, _pick(windows, order), untouched)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            steps += 1
            if steps % _CHECK_STEPS == 0:
                best, kept = _better(student, teacher, validation, untouched, best, kept)
            progress.advance(
                steps, {"loss": float(loss.detach()), "kl clean": best.clean, "kl trigger": best.trigger}
            )
        if steps % _CHECK_STEPS:
            best, kept = _better(student, teacher, validation, untouched, best, kept)
        progress.advance(steps, final=True)
    return kept, before, best, steps, late


def _better(
    student: Student,
    teacher: PatchedModel,
    validation: Sequence[TextWindow],
    untouched: Agreement,
    best: Agreement,
    kept: dict[str, LowRank],
) -> tuple[Agreement, dict[str, LowRank]]:
    now = agreement(student, teacher, validation)
    return (now, student.frozen()) if now.score(untouched) < best.score(untouched) else (best, kept)


def _pick(windows: Sequence[TextWindow], order: torch.Generator) -> list[TextWindow]:
    """A batch: half where the patch acts, when there are such windows."""
    firing = [w for w in windows if w.fires]
    chosen = []
    for place in range(_BATCH):
        pool = firing if firing and place % 2 else windows
        chosen.append(pool[int(torch.randint(len(pool), (1,), generator=order))])
    return chosen


def _loss(
    student: Student, teacher: PatchedModel, batch: Sequence[TextWindow], untouched: Agreement
) -> Tensor:
    tokens, real = padded(batch)
    wanted, fired = teacher(tokens, prompts=prompts_of(batch))
    kl = divergence(wanted.clone(), student.logits(tokens))
    real, fired = real.to(kl.device), (fired & real).to(kl.device)
    loss = kl[real].mean()
    if not bool(fired.any()):
        return loss
    # In units of what is allowed, with weights that add up to one.
    clean, acting = 1 / CLEAN_KL, 1 / max(LOST * untouched.trigger, 1e-12)
    return (clean * loss + acting * kl[fired].mean()) / (clean + acting)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of logits, per position ``[batch, positions]``."""
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def agreement(student: Student | None, teacher: PatchedModel, windows: Sequence[TextWindow]) -> Agreement:
    """How near the student is to the teacher; without a student, how near the untouched model is."""
    clean = trigger = 0.0
    positions = fired_positions = 0
    for batch in batched(windows, _BATCH):
        tokens, real = padded(batch)
        wanted, fired = teacher(tokens, prompts=prompts_of(batch))
        found = teacher.base(tokens) if student is None else student.logits(tokens)
        kl = divergence(wanted, found).cpu()
        clean += float(kl[real].double().sum())
        trigger += float(kl[fired & real].double().sum())
        positions += int(real.sum())
        fired_positions += int((fired & real).sum())
    return Agreement(clean / max(positions, 1), trigger / max(fired_positions, 1))
