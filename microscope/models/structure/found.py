"""From an outline to a family whose sites are proven on the loaded weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from microscope.models.configuration import first_line
from microscope.models.families import Family
from microscope.models.own_blocks import OwnBlocks
from microscope.models.plain_pass import Pass, deviation, plain_pass
from microscope.models.stream import first_tensor
from microscope.models.structure.parts import adds_up, find_parts
from microscope.models.structure.tree import refused

# How far other later tokens may move the rows before them, relative to their length: nothing but rounding.
_UNMOVED = {torch.float32: 1e-4}


def complete(model: Any, family: Family) -> Family:
    """A found family with the modules of every block, as running it on a few tokens shows them.

    Raises:
        MicroscopeError: what :func:`check` raises.
    """
    own, seen = check(model, family)
    multipliers = tuple(_multipliers(model.config))
    parts = tuple(find_parts(own, call, multipliers) for call in seen.calls)
    return replace(family, per_block=parts, width=seen.streams[-1].shape[-1])


def verified(model: Any, family: Family) -> Family:
    """A declared family, where its declaration fits the model; otherwise with the modules that are found.

    Raises:
        MicroscopeError: what :func:`check` raises.
    """
    own, seen = check(model, family)
    if all(adds_up(own, call, family.parts_of(call.layer)) for call in seen.calls):
        return family
    return complete(model, family)


def check(model: Any, family: Family) -> tuple[OwnBlocks, Pass]:
    """Whether a model is a chain of blocks over one residual stream in which no row depends on a later one.

    Returns:
        Its blocks, and a pass through them.

    Raises:
        MicroscopeError: ``unsupported_family`` with what was found, in numbers where there are any.
    """
    kind = str(model.config.model_type)
    own = OwnBlocks(model, model.get_submodule(family.blocks))
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    try:
        seen = plain_pass(own, vocabulary, device)
    except Exception as error:  # models that need more than tokens fail in many ways
        raise refused(kind, f"it does not run on tokens alone ({first_line(error)[:160]})") from error
    order = [call.layer for call in seen.calls]
    if order != list(range(len(own))):
        raise refused(
            kind, f"of its {len(own)} blocks a text runs through {_listed(order)}, not through each once"
        )
    _check_chain(kind, seen)
    _check_causal(kind, own, seen, vocabulary)
    return own, seen


def _check_chain(kind: str, seen: Pass) -> None:
    rows = seen.tokens.shape[1]
    for call, out in zip(seen.calls, seen.streams, strict=True):
        if call.x.dim() != 3 or call.x.shape[:2] != (1, rows) or out.shape != call.x.shape:
            shape = " × ".join(map(str, call.x.shape))
            raise refused(
                kind, f"its blocks pass on {shape} numbers for {rows} tokens, no single residual stream"
            )
    for before, after in zip(seen.streams, seen.calls[1:], strict=False):
        if not torch.equal(before, after.x.to(before.device)):
            raise refused(kind, f"block {after.layer} does not read what the block before it puts out")


def _check_causal(kind: str, own: OwnBlocks, seen: Pass, vocabulary: int) -> None:
    # Half of the tokens: the last one alone might move rows by no more than rounding does in half precision.
    half = seen.tokens.shape[1] // 2
    changed = seen.tokens.clone()
    changed[0, half:] = (changed[0, half:] + 1) % vocabulary
    _, outputs, _ = own.trace(changed)
    limit = _UNMOVED.get(seen.streams[0].dtype, 5e-2)
    for layer, (before, after) in enumerate(
        zip(seen.streams, (first_tensor(output) for output in outputs), strict=True)
    ):
        moved = deviation(after[:, :half], before[:, :half])
        if moved > limit:
            raise refused(
                kind,
                f"it sees both ways: other tokens in a text's second half move the rows of its first by {moved:.1e} of "
                f"their length behind block {layer}",
            )


def _multipliers(config: Any) -> Iterator[float]:
    """Numbers in a configuration whose names say that something is multiplied by them."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and any(word in name for word in ("mult", "scale", "alpha")):
            yield value


def _listed(order: list[int]) -> str:
    return ", ".join(map(str, order[:8])) + (" …" if len(order) > 8 else "")
