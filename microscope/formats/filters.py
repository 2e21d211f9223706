"""The token filter in files of other libraries: one further entry that their readers pass over."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from microscope.errors import MicroscopeError
from microscope.formats.settings import Settings
from microscope.sae import TokenFilter

FILTER_KEY = "microscope_token_filter"


def filter_entry(token_filter: TokenFilter) -> dict[str, Any]:
    """What a writer adds to a configuration; nothing where no filter is known."""
    return {FILTER_KEY: msgspec.to_builtins(token_filter)} if token_filter.known else {}


def stated_filter(config: Settings) -> TokenFilter:
    """The filter in a configuration, or the unknown one where there is none.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    stated = config.get(FILTER_KEY)
    if stated is None:
        return TokenFilter()
    try:
        found = msgspec.convert(stated, TokenFilter)
    except msgspec.ValidationError as error:
        raise MicroscopeError(
            "bad_sae", f"The entry {FILTER_KEY} is not a token filter: {error}", f"Remove {FILTER_KEY}."
        ) from error
    if found.max_norm is not None and not math.isfinite(found.max_norm):
        raise MicroscopeError(
            "bad_sae", f"The norm in {FILTER_KEY} is {found.max_norm}.", f"Remove {FILTER_KEY}."
        )
    return found
