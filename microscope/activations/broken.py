"""Rows that are infinite or no numbers: where they come from, and when they are too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microscope.activations.manifest import Manifest
from microscope.errors import MicroscopeError

if TYPE_CHECKING:
    from microscope.models import LoadedModel

# Infinite rows, or rows of no numbers, are left out; above this share of a site's rows, what is left is no sample.
_MOST_NOT_FINITE = 0.5


def broken_weight(loaded: LoadedModel) -> str | None:
    """The first weight of a model with entries that are infinite or no numbers; of an embedding, the token, too."""
    for name, weight in loaded.model.named_parameters():
        if not weight.is_floating_point() or bool(torch.isfinite(weight).all()):
            continue
        if weight is loaded.model.get_input_embeddings().weight:
            row = int((~torch.isfinite(weight)).any(1).int().argmax())
            return f"{name} at token {loaded.tokenizer.convert_ids_to_tokens(row)!r}"
        return str(name)
    return None


def refuse_mostly_not_finite(manifest: Manifest, what: str, remedy: str) -> None:
    """Refuse a recording with so many infinite rows, or rows of no numbers, that the rest would mislead.

    Raises:
        MicroscopeError: ``not_finite`` with the site and how many.
    """
    rows = manifest.train.rows + manifest.held_out.rows
    for site in manifest.sites:
        if site.nonfinite > _MOST_NOT_FINITE * rows:
            raise MicroscopeError(
                "not_finite",
                f"{site.nonfinite} of {rows} rows of {site.site} of {what} are infinite or no numbers.",
                remedy,
            )
