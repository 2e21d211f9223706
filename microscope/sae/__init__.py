"""Sparse autoencoders."""

from microscope.sae.base import Codes, IndependentLatents, SparseAutoencoder
from microscope.sae.config import SaeConfig, TokenFilter
from microscope.sae.files import load_sae, save_sae, summarise
from microscope.sae.registry import ARCHITECTURES, architecture

__all__ = [
    "ARCHITECTURES",
    "Codes",
    "IndependentLatents",
    "SaeConfig",
    "SparseAutoencoder",
    "TokenFilter",
    "architecture",
    "load_sae",
    "save_sae",
    "summarise",
]
