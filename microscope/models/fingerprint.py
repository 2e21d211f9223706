"""Content identities of models and tokenizers, so that a recording can't meet the wrong model unnoticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

_SAMPLES = 4096


@torch.no_grad()
def model_fingerprint(model: nn.Module) -> str:
    """32 hex digits over names, shapes and evenly spaced samples of all weights.

    Samples are rounded to bfloat16 first, so that one model loaded in different precisions has one
    fingerprint, and only a few kilobytes per tensor are read, so that size does not matter.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
        sample = flat[picks.to(flat.device)].to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """32 hex digits over the vocabulary and the special tokens."""
    content = json.dumps(
        [sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]), sorted(tokenizer.all_special_ids)]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]
