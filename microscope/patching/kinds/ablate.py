"""``ablate``: x − f·d."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.patching.mechanisms import ActivationKind

if TYPE_CHECKING:
    from torch import Tensor


class Ablate(ActivationKind, frozen=True):
    """Takes a feature's own contribution out where it fires."""

    @staticmethod
    def change(f: Tensor, amount: float) -> Tensor:
        """−f."""
        return -f


KIND = Ablate(
    name="ablate",
    title="Ablate",
    description="removes what the feature writes",
    formula="x − f·d",
    sentence="ablate {target}",
    needs_firing=True,
    order=10,
)
