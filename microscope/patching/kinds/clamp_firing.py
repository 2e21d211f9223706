"""``clamp_firing``: x + (c − f)·d where f > 0, with c the strength in units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.params.edit_kinds import Slider
from microscope.patching.mechanisms import ActivationKind

if TYPE_CHECKING:
    from torch import Tensor


class ClampFiring(ActivationKind, frozen=True):
    """Gives a feature one activation where it fires."""

    @staticmethod
    def change(f: Tensor, amount: float) -> Tensor:
        """c − f where f > 0, else 0."""
        return (amount - f).where(f > 0, 0.0)


KIND = ClampFiring(
    name="clamp_firing",
    title="Clamp where it fires",
    description="sets the feature to one value where it fires, in multiples of its own 99.9th percentile",
    formula="x + (c − f)·d where f > 0",
    sentence="set {target} to {strength} × {unit} where it fires",
    counts="activation",
    slider=Slider(min=-2, max=4),
    initial=1.0,
    needs_firing=True,
    order=30,
)
