"""``project``: x + (λ − 1)(d̂·x)·d̂ with λ the strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.params.edit_kinds import Slider
from microscope.patching.mechanisms import DirectionKind

if TYPE_CHECKING:
    from torch import Tensor


class Project(DirectionKind, frozen=True):
    """Multiplies the stream's component along a feature's direction."""

    why_fitted = (
        "Projecting the stream at one layer has no equal in weights; a low-rank update is fitted to it.",
        "“Ablate everywhere” is exact in weights, and runs live with the same meaning.",
    )

    @staticmethod
    def change(x: Tensor, unit: Tensor, amount: float) -> Tensor:
        """(λ − 1) times the component."""
        return ((amount - 1.0) * (x @ unit))[..., None] * unit


KIND = Project(
    name="project",
    title="Project",
    description="multiplies the stream's component along the direction; 1 changes nothing, 0 removes it",
    formula="x + (λ − 1)(d̂·x)·d̂",
    sentence="project {target} to {strength} of its component",
    neutral=1.0,
    slider=Slider(min=-1, max=3),
    order=60,
)
