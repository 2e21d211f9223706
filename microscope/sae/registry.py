"""Every architecture, by name. A new one is one file and one entry here."""

from __future__ import annotations

from microscope.errors import MicroscopeError
from microscope.sae.base import SparseAutoencoder
from microscope.sae.batchtopk import BatchTopKSae
from microscope.sae.gated import GatedSae
from microscope.sae.groupmax import GroupMaxSae
from microscope.sae.jumprelu import JumpReluSae
from microscope.sae.matryoshka import MatryoshkaSae
from microscope.sae.standard import StandardSae
from microscope.sae.topk import TopKSae

ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    cls.architecture: cls
    for cls in (TopKSae, BatchTopKSae, MatryoshkaSae, JumpReluSae, GatedSae, StandardSae)
}
# Computed, edited and exported as all others are, but not offered for training.
IMPORTED: dict[str, type[SparseAutoencoder]] = {cls.architecture: cls for cls in (GroupMaxSae,)}


def architecture(name: str) -> type[SparseAutoencoder]:
    """Raises :class:`MicroscopeError` ``unknown_architecture``."""
    known = ARCHITECTURES | IMPORTED
    try:
        return known[name]
    except KeyError:
        raise MicroscopeError(
            "unknown_architecture",
            f"There is no SAE architecture '{name}'.",
            f"Known: {', '.join(known)}.",
        ) from None
