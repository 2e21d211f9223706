"""Blocks, embedding and head of any decoder, found in its module tree; weights are not needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from microscope.errors import MicroscopeError
from microscope.models.families import Family

# Parts of a model that read images or sound, where their names say so: a text does not run through them.
_OTHER_SENSES = re.compile(r"vision|visual|image|img|audio|speech|sound|video")


def outline(model: Any) -> Family:
    """Where the blocks and the head of a causal language model are.

    Works on a skeleton without storage, too. The blocks are the list of modules that holds most weights of
    all lists that are in no other list. What is inside the blocks is for ``find_parts``, which runs them.

    Raises:
        MicroscopeError: ``unsupported_family`` when there is no such list, no embedding or no head.
    """
    kind = str(model.config.model_type)
    candidates = list(_outermost_lists(model))
    if not candidates:
        raise refused(kind, "its module tree has no list of blocks")

    def weight(found: tuple[str, nn.ModuleList]) -> tuple[bool, int]:
        path, blocks = found
        return not _OTHER_SENSES.search(path), sum(p.numel() for p in blocks.parameters())

    path, _ = max(candidates, key=weight)
    try:
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    except NotImplementedError:  # classes whose embedding transformers cannot find itself
        head = embedding = None
    if head is None or embedding is None:
        raise refused(kind, "it has no embedding of tokens, or nothing that predicts the next one")
    named = {id(module): name for name, module in model.named_modules()}
    return Family(kind, (kind,), path, head=named[id(head)], eager=has_soft_caps(model.config), found=True)


def has_soft_caps(config: Any) -> bool:
    """Whether scores of attention are capped, which fused kernels leave out."""
    return bool(getattr(config, "attn_logit_softcapping", None))


def refused(kind: str, reason: str) -> MicroscopeError:
    """A model that no path serves."""
    return MicroscopeError(
        "unsupported_family",
        f"Models of type '{kind}' are not supported: {reason}.",
        "Models that predict the next token with a chain of blocks over one residual stream are.",
    )


def _outermost_lists(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList):
            if len(child) and any(True for _ in child.parameters()):
                yield path, child
        else:
            yield from _outermost_lists(child, f"{path}.")
