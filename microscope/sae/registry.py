"""The classes of SAEs by the name of their architecture, each imported when the first of its kind is met."""

from __future__ import annotations

from microscope.params.architectures import architectures
from microscope.params.extensions import implementation
from microscope.sae.base import SparseAutoencoder


def architecture(name: str) -> type[SparseAutoencoder]:
    """The class of SAEs of that architecture.

    Raises:
        MicroscopeError: ``unknown_architecture``, or ``bad_extension`` where another package's cannot be loaded.
    """
    declared = architectures().find(name)
    found: type[SparseAutoencoder] = implementation(declared, declared.model, SparseAutoencoder)
    return found
