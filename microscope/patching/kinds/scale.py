"""``scale``: x + (α − 1)·f·d with α the strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.params.edit_kinds import Slider
from microscope.patching.mechanisms import ActivationKind

if TYPE_CHECKING:
    from torch import Tensor


class Scale(ActivationKind, frozen=True):
    """Multiplies a feature's activation."""

    @staticmethod
    def change(f: Tensor, amount: float) -> Tensor:
        """α·f − f."""
        return (amount - 1.0) * f


KIND = Scale(
    name="scale",
    title="Scale",
    description="multiplies the feature where it fires; 1 changes nothing, 0 ablates",
    formula="x + (α − 1)·f·d",
    sentence="scale {target} by {strength}",
    neutral=1.0,
    slider=Slider(min=-2, max=8),
    initial=2.0,
    needs_firing=True,
    order=20,
)
