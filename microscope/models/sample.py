"""A few tokens to try a loaded model on."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.models.load import LoadedModel

_TOKENS = 24


def some_tokens(loaded: LoadedModel) -> Tensor:
    """A few random token ids ``[1, positions]``, the same every time."""
    count = min(_TOKENS, loaded.max_context)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(loaded.vocab_size, (1, count), generator=generator).to(loaded.device)
