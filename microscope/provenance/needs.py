"""How much memory a graph will take, told before anything of it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from microscope.errors import MicroscopeError
from microscope.graphs import GraphTarget
from microscope.models import LoadedModel
from microscope.models.memory import bytes_free
from microscope.params import Site
from microscope.provenance.explain import Limits
from microscope.provenance.gradients import bytes_of_one, numbers_at_once
from microscope.sae import SparseAutoencoder

# Measured on a model of 135 million parameters, 64 to 512 tokens: what one frozen block holds per number that its
# linear modules put out, what one entry of its attention patterns costs, and what each number that is explained adds
# per number of the stream. In float32 the whole is 10 to 35 % above what was measured, in bfloat16 half.
_HELD, _PATTERN = 4.0, 2.0
_FLOAT = 4
_ALWAYS = 32 * 2**20
_MARGIN = 1.1


def bytes_needed(
    loaded: LoadedModel,
    n_tokens: int,
    target: GraphTarget,
    saes: Mapping[str, SparseAutoencoder],
    limits: Limits | None = None,
) -> int:
    """Memory that :func:`~microscope.provenance.explain` takes beside the model and the SAEs, from above.

    It grows with the blocks between the lowest SAE and the target, with the square of the prompt's length by their
    attention patterns, and with the numbers that one backward pass explains.

    Args:
        loaded: the model.
        n_tokens: length of the prompt.
        target: what is explained.
        saes: SAEs and transcoders by fingerprint.
        limits: how much is made.
    """
    limits = limits or Limits()
    top = _top(loaded, target, saes)
    below = [site for site in map(_writes, saes.values()) if site.layer < top]
    lowest = 0 if limits.hops > len(below) or not below else min(site.layer for site in below)
    held = range(lowest, top + 1)
    blocks: Any = loaded.model.get_submodule(loaded.family.blocks)
    rows, width = n_tokens, loaded.d_model
    heads = _heads(loaded)
    numbers = min(limits.parents, limits.shown) if limits.hops > 1 and below else 1
    numbers = min(numbers, numbers_at_once(len(held), rows, heads, width))
    patterns = heads * rows * rows
    widths = [_outputs(blocks[layer], loaded.config) for layer in held]
    floats = _HELD * rows * sum(widths)
    floats += _PATTERN * patterns * len(held)
    floats += numbers * (bytes_of_one(len(held), rows, heads, width) / _FLOAT + _PATTERN * patterns)
    floats += numbers * rows * max(widths, default=0)
    floats += width * rows * (loaded.n_layers + 1)
    if loaded.dtype != torch.float32:  # computed with copies of the weights, which a backward pass needs
        floats += sum(_parameters(blocks[layer].parameters()) for layer in held)
        outside = {id(p) for p in blocks.parameters()}
        floats += _parameters(p for p in loaded.model.parameters() if id(p) not in outside)
    return _ALWAYS + int(_MARGIN * _FLOAT * floats)


def require_memory(
    need: int, n_tokens: int, device: torch.device, *, allowed: int | None = None, promised: int = 0
) -> None:
    """Whether a graph can be made in the memory there is.

    Args:
        need: what :func:`bytes_needed` says.
        n_tokens: length of the prompt.
        device: where.
        allowed: bytes it may take at most.
        promised: bytes that graphs under way may still come to take.

    Raises:
        MicroscopeError: ``graph_needs_memory`` with the numbers.
    """
    free = max(0, bytes_free(device) - promised)
    limit = free if allowed is None else min(allowed, free)
    if need > limit:
        what = "are free" if limit == free else "are allowed"
        what += " beside other graphs" if promised else ""
        raise MicroscopeError(
            "graph_needs_memory",
            f"A graph of {n_tokens} tokens needs about {need / 1e9:.2f} GB beside the model; "
            f"{limit / 1e9:.2f} GB {what}.",
            "Shorten the prompt, ask for fewer parents, or give SAEs nearer to the target.",
        )


def _top(loaded: LoadedModel, target: GraphTarget, saes: Mapping[str, SparseAutoencoder]) -> int:
    last = loaded.n_layers - 1
    if target.kind == "feature" and target.sae in saes:
        return min(Site.parse(saes[target.sae].config.site).layer, last)
    if target.kind in ("attention", "direction") and target.layer is not None:
        return max(0, min(target.layer, last))
    return last


def _writes(sae: SparseAutoencoder) -> Site:
    return Site.parse(sae.config.site_out or sae.config.site)


def _heads(loaded: LoadedModel) -> int:
    config = loaded.config
    found = (getattr(config, name, None) for name in ("num_attention_heads", "n_head", "num_heads"))
    return next((heads for heads in found if isinstance(heads, int)), 16)


def _outputs(block: torch.nn.Module, config: Any) -> float:
    """Numbers that a block's linear modules put out for a token; of experts, those that a token is sent to."""
    chosen = getattr(config, "num_experts_per_tok", None)
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for name in names if isinstance(n := getattr(config, name, None), int)), 0)
    share = chosen / experts if isinstance(chosen, int) and experts else 1.0
    total = 0.0
    for name, parameter in block.named_parameters():
        if parameter.dim() < 2:
            continue
        many = parameter.shape[0] if parameter.dim() == 3 else 1
        total += max(parameter.shape[-2:]) * many * (share if ".experts." in f".{name}." else 1.0)
    return total


def _parameters(found: Iterable[torch.nn.Parameter]) -> int:
    return sum(p.numel() for p in found if p.is_floating_point() and p.dtype != torch.float32)
