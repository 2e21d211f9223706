"""The token filter of an SAE that states none: found on a recording, or on a short text run through a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from microscope.activations.forward import SiteReader
from microscope.activations.manifest import BOS, SPECIAL
from microscope.activations.reader import Recording
from microscope.models.families import check_site
from microscope.naming import public_name
from microscope.params import Site
from microscope.sae import Derivation, SparseAutoencoder, TokenFilter

if TYPE_CHECKING:
    from microscope.models import LoadedModel

# A token is an attention sink above this multiple of the median norm, where no recording says otherwise.
SINK_FACTOR = 8.0

PROBE_TEXT = (
    "The committee met on Tuesday to discuss the new bridge across the river. Its chair, an engineer by training, "
    "said that the old one had been built in 1931 and could no longer carry the traffic of a growing town. Several "
    "members asked about the cost: 4.2 million over three years, of which the region would pay a third.\n\n"
    "def mean(values):\n    return sum(values) / len(values)\n\n"
    "When water is heated to 100 degrees Celsius at sea level it begins to boil; on a high mountain, where the air is "
    "thinner, it boils earlier, and an egg takes longer to cook. “That is why,” she wrote in her diary, “we carry a "
    "pot with a heavy lid.” In the morning they went on, past two lakes and a small white church, until the valley "
    "opened and they could see the lights of the harbour."
)


def filter_on_recording(recording: Recording, site: str) -> TokenFilter:
    """The filter an SAE trained on this recording would have.

    Raises:
        MicroscopeError: ``site_not_recorded``.
    """
    record = recording.site(site)
    return TokenFilter(
        max_norm=record.outlier_norm,
        derived=Derivation(
            source="recording",
            name=recording.manifest.fingerprint,
            factor=recording.manifest.outlier_factor,
            median_norm=record.median_norm,
        ),
    )


def filter_on_model(loaded: LoadedModel, site: str, text: str = PROBE_TEXT) -> TokenFilter:
    """A filter from the norms of a short text's ordinary tokens; unknown where these have none.

    Raises:
        MicroscopeError: ``layer_out_of_range`` or ``no_such_site``.
    """
    parsed = Site.parse(site)
    check_site(parsed, loaded.n_layers)
    ids = loaded.encode(text)[: loaded.max_context]
    special = special_tokens(loaded, ids)
    if special.all():
        return TokenFilter()
    tokens = torch.tensor([ids])
    with SiteReader(loaded, [parsed]) as reader:
        rows = reader.read(tokens, torch.ones_like(tokens, dtype=torch.bool))[str(parsed)][0]
    median = float(rows.float().norm(dim=1).cpu()[~special].median())
    if not (math.isfinite(median) and median > 0):
        return TokenFilter()
    derived = Derivation(
        source="text", name=public_name(loaded.reference), factor=SINK_FACTOR, median_norm=median
    )
    return TokenFilter(max_norm=SINK_FACTOR * median, derived=derived)


def special_tokens(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Which token ids are special, ``[tokens]``."""
    special = torch.tensor(sorted(loaded.tokenizer.all_special_ids), dtype=torch.long)
    return torch.isin(torch.tensor(ids, dtype=torch.long), special)


def settle_on_recording(sae: SparseAutoencoder, recording: Recording) -> TokenFilter:
    """The SAE's own token filter, or, where none is known, the recording's, which becomes the SAE's.

    Raises:
        MicroscopeError: ``site_not_recorded``.
    """
    if not sae.config.token_filter.known:
        sae.config.token_filter = filter_on_recording(recording, str(Site.parse(sae.config.site)))
    return sae.config.token_filter


def settle_on_model(sae: SparseAutoencoder, loaded: LoadedModel) -> TokenFilter:
    """The SAE's own token filter, or, where none is known, one from a short text, which becomes the SAE's.

    Raises:
        MicroscopeError: ``layer_out_of_range`` or ``no_such_site``.
    """
    if not sae.config.token_filter.known:
        sae.config.token_filter = filter_on_model(loaded, sae.config.site)
    return sae.config.token_filter


def kept_rows(token_filter: TokenFilter, flags: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """True for recorded rows a filter keeps, ``[rows]``; what could not be stored is never kept."""
    special, unusable = (flags & (SPECIAL | BOS)) != 0, (flags & ~np.uint8(SPECIAL | BOS)) != 0
    return token_filter.keep(special, norm) & ~unusable
