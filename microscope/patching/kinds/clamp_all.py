"""``clamp_all``: x + (c − f)·d, with c the strength in units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.params.edit_kinds import Slider
from microscope.patching.mechanisms import ActivationKind

if TYPE_CHECKING:
    from torch import Tensor


class ClampAll(ActivationKind, frozen=True):
    """Gives a feature one activation at every token."""

    @staticmethod
    def change(f: Tensor, amount: float) -> Tensor:
        """c − f."""
        return amount - f


KIND = ClampAll(
    name="clamp_all",
    title="Clamp at every token",
    description="sets the feature to one value at every token, in multiples of its own 99.9th percentile",
    formula="x + (c − f)·d",
    sentence="set {target} to {strength} × {unit} at every token",
    counts="activation",
    slider=Slider(min=-2, max=4),
    initial=1.0,
    order=40,
)
