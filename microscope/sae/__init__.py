"""Sparse autoencoders."""

from microscope.sae.base import Codes, IndependentLatents, SparseAutoencoder
from microscope.sae.config import SaeConfig
from microscope.sae.files import load_sae, read_config, save_sae, summarise
from microscope.sae.registry import architecture
from microscope.sae.token_filter import Derivation, TokenFilter

__all__ = [
    "Codes",
    "Derivation",
    "IndependentLatents",
    "SaeConfig",
    "SparseAutoencoder",
    "TokenFilter",
    "architecture",
    "load_sae",
    "read_config",
    "save_sae",
    "summarise",
]
