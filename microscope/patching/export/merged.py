"""A whole checkpoint with the patch in its weights: loads wherever the base model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.models.sample import some_tokens
from microscope.patching.weights import WeightChange, change_weights, held_hooks

# Largest difference of logits from rounding, relative to the largest logit and to what the patch does to them.
_ROUNDING, _OF_EFFECT = 1e-4, 1e-2


def write_merged(folder: Path, loaded: LoadedModel, change: WeightChange, dtype: str) -> bool:
    """Write configuration, safetensors weights and tokenizer; returns whether embedding and head were untied.

    Raises:
        MicroscopeError: ``not_exact`` when the changed weights compute something else than hooks do, or what
            :func:`refuse_unsteady` and :func:`change_weights` raise.
    """
    # An own copy: the loaded model's weights are never written.
    own = load_model(loaded.reference, revision=loaded.revision, dtype="float32", device="cpu")
    refuse_unsteady(own)
    untied = change_weights(own, change)
    prove(loaded, own, change)
    model = own.model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    # The embedding of a causal model counts as its head's when tied; saving keeps one copy then.
    model.save_pretrained(folder, safe_serialization=True)
    own.tokenizer.save_pretrained(folder)
    return untied


@torch.no_grad()
def refuse_unsteady(own: LoadedModel) -> None:
    """Raises :class:`MicroscopeError` ``not_possible`` for a model that rewrites its weights when it runs, as RWKV does."""
    before = _sums(own.model)
    own.model(some_tokens(own), use_cache=False)
    if _sums(own.model) != before:
        raise MicroscopeError(
            "not_possible",
            "This model rewrites its own weights when it runs; saved like that they would be rewritten twice.",
            "The runtime bundle is exact.",
        )


def _sums(model: Any) -> dict[str, float]:
    return {name: float(weight.sum(dtype=torch.float64)) for name, weight in model.named_parameters()}


@torch.no_grad()
def prove(loaded: LoadedModel, own: LoadedModel, change: WeightChange) -> None:
    """Compare changed weights with hooks on the untouched model, on random tokens.

    Raises:
        MicroscopeError: ``not_exact`` with the numbers.
    """
    tokens = some_tokens(loaded)
    base = loaded.model(tokens, use_cache=False).logits.float().cpu()
    hooks = held_hooks(loaded, change)
    try:
        wanted = loaded.model(tokens, use_cache=False).logits.float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    merged = own.model(tokens.to(own.device), use_cache=False).logits.float().cpu()
    error, effect = float((merged - wanted).abs().max()), float((wanted - base).abs().max())
    if not error <= _ROUNDING * float(wanted.abs().max()) + _OF_EFFECT * effect:
        raise MicroscopeError(
            "not_exact",
            f"The changed weights do not do what the patch does: logits differ by up to {error:.3g} from those of "
            f"the patch, which differ by {effect:.3g} from the untouched model's.",
            "Models of this family use what is changed elsewhere, too. The runtime bundle is exact.",
        )
