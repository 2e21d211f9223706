"""``splice``: SAE(x) in place of x. Sinks pass through unless asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microscope.patching.mechanisms import ReconstructionKind

if TYPE_CHECKING:
    from torch import Tensor

    from microscope.params import Edit


class Splice(ReconstructionKind, frozen=True):
    """Replaces the stream by an SAE's reconstruction."""

    replaces = True
    why_fitted = (
        "An SAE's reconstruction is no change of weights; a low-rank update is fitted to it.",
        "The runtime bundle is exact.",
    )

    def identity(self, edit: Edit) -> dict[str, Any]:
        """The autoencoder and where: it has no strength."""
        return {"site": edit.site, "sae": edit.sae, "positions": edit.positions}

    @staticmethod
    def change(x: Tensor, reconstruction: Tensor, amount: float) -> Tensor:
        """What the SAE misses, taken away."""
        return reconstruction - x


KIND = Splice(
    name="splice",
    title="Splice",
    description="replaces the stream by the SAE's reconstruction; sinks pass through",
    formula="SAE(x)",
    sentence="replace {site} by its reconstruction",
    order=80,
)
