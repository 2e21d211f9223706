"""Numbers that compare the untouched model, the patched one and the export, position by position.

Divergences are taken in float64: the KL of two nearly equal distributions is of second order in the
difference of their logits, and a weak patch exported exactly would drown in the rounding of float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor

from microscope.evaluation.reconstruction import ratio_interval

# After the first position where an edit fires, a position counts as affected when KL(patch ‖ base) is at least this
# part of its mean where edits fire.
_AFFECTED = 0.1


class Mean(msgspec.Struct, kw_only=True, frozen=True):
    """A mean over positions with a 95 % bootstrap interval over documents (None for fewer than three)."""

    value: float
    interval: tuple[float, float] | None = None


class Parity(msgspec.Struct, kw_only=True, frozen=True):
    """How near the export is to the patch. KL(patch ‖ export) per position in nats."""

    positions: int
    contexts: int
    kl: Mean
    kl_p95: float
    kl_max: float
    top1_agreement: float
    max_abs_logit: float


class Collateral(msgspec.Struct, kw_only=True, frozen=True):
    """What text pays: KL(base ‖ ·) per position, and the relative change of perplexity."""

    kl: Mean
    perplexity_change: Mean


@dataclass
class Rows:
    """Columns over positions, and which document and which context each is of."""

    doc: list[np.ndarray] = field(default_factory=list)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    context: list[np.ndarray] = field(default_factory=list)

    def add(self, doc: int, values: dict[str, Tensor], context: int | None = None) -> None:
        """Positions of one context, of which no other call with another ``context`` has any."""
        size = len(next(iter(values.values())))
        if not size:
            return
        self.context.append(np.full(size, len(self.context) if context is None else context))
        self.doc.append(np.full(size, doc))
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.double().cpu().numpy())

    def __len__(self) -> int:
        return sum(map(len, self.doc))

    @property
    def contexts(self) -> int:
        """How many contexts the positions are of."""
        return len(np.unique(np.concatenate(self.context))) if self.context else 0

    def where(self, keep: np.ndarray) -> Rows:
        """The positions of a mask ``[positions]``."""
        if not len(self):
            return self
        columns = {name: [self.column(name)[keep]] for name in self.columns}
        return Rows([np.concatenate(self.doc)[keep]], columns, [np.concatenate(self.context)[keep]])

    def column(self, name: str) -> np.ndarray:
        """All values of a column."""
        return np.concatenate(self.columns[name]) if self.columns.get(name) else np.empty(0)

    def sums(self, name: str, *, by: str = "doc") -> np.ndarray:
        """Sums by document, or by ``context``."""
        _, place = np.unique(np.concatenate(getattr(self, by)), return_inverse=True)
        return np.bincount(place, self.column(name))

    def counts(self) -> np.ndarray:
        """Positions by document."""
        return np.unique(np.concatenate(self.doc), return_counts=True)[1].astype(float)


def compare(base: Tensor, patched: Tensor, half: Tensor, export: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Columns of one context, from logits ``[positions, vocabulary]`` and token ids ``[positions]``.

    ``half`` are the logits of the patch at half strength. The loss of a position is that of predicting the
    next token; the last one has none (0, and left out by ``predicts``). ``spread`` is the variance of the
    base's logits over the vocabulary.
    """
    b, p, h, e = (logits.double().log_softmax(-1) for logits in (base, patched, half, export))

    def kl(x: Tensor, y: Tensor) -> Tensor:
        return (x.exp() * (x - y)).sum(-1).clamp_min(0)

    following = torch.cat((tokens[1:], tokens[-1:]))[:, None].to(b.device)
    predicts = torch.ones(len(tokens), device=b.device)
    predicts[-1] = 0
    loss_base, loss_patched, loss_export = (-x.gather(1, following)[:, 0] * predicts for x in (b, p, e))
    return {
        "kl_patch_export": kl(p, e),
        "kl_patch_base": kl(p, b),
        "kl_patch_half": kl(p, h),
        "kl_base_patch": kl(b, p),
        "kl_base_export": kl(b, e),
        "agrees": (patched.argmax(-1) == export.argmax(-1)).double(),
        "max_abs_logit": (patched.float() - export.float()).abs().amax(-1),
        "spread": base.double().var(-1),
        "predicts": predicts,
        "loss_base": loss_base,
        "loss_patched": loss_patched,
        "loss_export": loss_export,
    }


def parity(rows: Rows, bootstrap: int, seed: int) -> Parity | None:
    """Statistics of patch against export; None without positions."""
    if not len(rows):
        return None
    kl = rows.column("kl_patch_export")
    return Parity(
        positions=len(kl),
        contexts=rows.contexts,
        kl=Mean(
            value=float(kl.mean()),
            interval=ratio_interval(rows.sums("kl_patch_export"), rows.counts(), bootstrap, seed),
        ),
        kl_p95=float(np.quantile(kl, 0.95)),
        kl_max=float(kl.max()),
        top1_agreement=float(rows.column("agrees").mean()),
        max_abs_logit=float(rows.column("max_abs_logit").max()),
    )


def collateral(rows: Rows, kl: str, loss: str, bootstrap: int, seed: int) -> Collateral:
    """KL from the untouched model and the change of perplexity, on text as it comes."""
    predicts = rows.sums("predicts")
    change = rows.sums(loss) - rows.sums("loss_base")
    mean_interval = ratio_interval(change, predicts, bootstrap, seed)
    return Collateral(
        kl=Mean(
            value=float(rows.column(kl).mean()),
            interval=ratio_interval(rows.sums(kl), rows.counts(), bootstrap, seed),
        ),
        perplexity_change=Mean(
            value=float(np.expm1(change.sum() / predicts.sum())),
            interval=None
            if mean_interval is None
            else (float(np.expm1(mean_interval[0])), float(np.expm1(mean_interval[1]))),
        ),
    )


def affected(rows: Rows) -> Rows:
    """Where the patch acts: positions at which an edit fires, and later ones that it affects.

    ``rows`` holds, for every context in which an edit fires, the positions from the first at which one does;
    their column ``fires`` tells where.
    """
    if not len(rows):
        return rows
    fires, effect = rows.column("fires") > 0, rows.column("kl_patch_base")
    return rows.where(fires | ((effect > 0) & (effect >= _AFFECTED * effect[fires].mean())))


def share_kept(rows: Rows, against: str, bootstrap: int, seed: int) -> Mean | None:
    """``1 − Σ KL(patch ‖ export) / Σ KL(patch ‖ other)`` over positions, its interval over contexts.

    Args:
        rows: positions where the patch acts.
        against: the column of the other, ``kl_patch_base`` or ``kl_patch_half``.

    Returns:
        None where the patch and the other do not differ.
    """
    whole = rows.column(against)
    if not len(whole) or not whole.sum() > 0:
        return None
    lost = rows.column("kl_patch_export")
    by_context = {name: rows.sums(name, by="context") for name in ("kl_patch_export", against)}
    # A resample in which only contexts without effect were drawn has no share.
    counts = by_context[against] > 0
    interval = ratio_interval(
        by_context["kl_patch_export"][counts], by_context[against][counts], bootstrap, seed
    )
    return Mean(
        value=float(1 - lost.sum() / whole.sum()),
        interval=None if interval is None else (1 - interval[1], 1 - interval[0]),
    )
