"""The second step of a fit: low-rank factors trained so that the model predicts what the patched one predicts.

Loss: KL(patched ‖ fitted) averaged over all positions plus its average where the patch acts. The best state
by held-aside text is kept, so training can only improve on where it began.
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
from microscope.patching.fitting.least_squares import batched, padded
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel, add_deltas
from microscope.progress import Progress

CLEAN_GATE, TRIGGER_GATE = 0.01, 0.05
_BATCH, _MAX_STEPS, _CHECK_STEPS = 4, 300, 20
_RATE = 2e-3
# Good enough: a tenth of what is allowed.
_ENOUGH = 0.1


@dataclass(frozen=True)
class Agreement:
    """Mean KL(patched ‖ fitted) in nats over all positions, and over those where the patch acts."""

    clean: float
    trigger: float

    @property
    def score(self) -> float:
        """The worse of the two as a multiple of what is allowed."""
        return max(self.clean / CLEAN_GATE, self.trigger / TRIGGER_GATE)


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
    aside: Sequence[TextWindow],
    *,
    deadline: float,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, LowRank], Agreement, Agreement, int]:
    """Train the student's factors in place.

    Returns:
        The best factors, agreement on the text held aside before and after, and the steps done.
    """
    before = best = agreement(student, teacher, aside)
    kept = student.frozen()
    steps = 0
    order = torch.Generator().manual_seed(seed)
    parameters = [p.requires_grad_() for p in student.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=_RATE)
    began = progress.now()
    with progress.phase("distilling", 100, "%"):
        while steps < _MAX_STEPS and progress.now() < deadline and best.score > _ENOUGH:
            share = max(steps / _MAX_STEPS, (progress.now() - began) / max(deadline - began, 1e-9))
            for group in optimiser.param_groups:
                group["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
            loss = _loss(student, teacher, _pick(windows, order))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            steps += 1
            if steps % _CHECK_STEPS == 0:
                best, kept = _better(student, teacher, aside, best, kept)
            progress.advance(
                100 * min(share, 1),
                {"kl": float(loss.detach()), "kl clean": best.clean, "kl trigger": best.trigger},
            )
        if steps % _CHECK_STEPS:
            best, kept = _better(student, teacher, aside, best, kept)
        progress.advance(100, final=True)
    return kept, before, best, steps


def _better(
    student: Student,
    teacher: PatchedModel,
    aside: Sequence[TextWindow],
    best: Agreement,
    kept: dict[str, LowRank],
) -> tuple[Agreement, dict[str, LowRank]]:
    now = agreement(student, teacher, aside)
    return (now, student.frozen()) if now.score < best.score else (best, kept)


def _pick(windows: Sequence[TextWindow], order: torch.Generator) -> list[TextWindow]:
    """A batch: half where the patch acts, when there are such windows."""
    firing = [w for w in windows if w.fires]
    chosen = []
    for place in range(_BATCH):
        pool = firing if firing and place % 2 else windows
        chosen.append(pool[int(torch.randint(len(pool), (1,), generator=order))])
    return chosen


def _loss(student: Student, teacher: PatchedModel, batch: Sequence[TextWindow]) -> Tensor:
    tokens, real = padded(batch)
    wanted, fired = teacher(tokens)
    kl = divergence(wanted.clone(), student.logits(tokens))
    real, fired = real.to(kl.device), (fired & real).to(kl.device)
    loss = kl[real].mean()
    return loss + kl[fired].mean() if bool(fired.any()) else loss


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of logits, per position ``[batch, positions]``."""
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def agreement(student: Student, teacher: PatchedModel, windows: Sequence[TextWindow]) -> Agreement:
    """How near the student is to the teacher."""
    clean = trigger = 0.0
    positions = fired_positions = 0
    for batch in batched(windows, _BATCH):
        tokens, real = padded(batch)
        wanted, fired = teacher(tokens)
        kl = divergence(wanted, student.logits(tokens)).cpu()
        clean += float(kl[real].double().sum())
        trigger += float(kl[fired & real].double().sum())
        positions += int(real.sum())
        fired_positions += int((fired & real).sum())
    return Agreement(clean / max(positions, 1), trigger / max(fired_positions, 1))
