"""Names that other libraries use for sites of a model.

TransformerLens hooks (``blocks.3.hook_resid_post``), and module paths of ``transformers`` with the end that
is read (``model.layers.3.mlp`` and its input or output).
"""

from __future__ import annotations

import re
from typing import Literal

from microscope.errors import MicroscopeError
from microscope.params import Site

End = Literal["input", "output"]

_BLOCK = re.compile(r"(?:[a-z_]+\.)*?(?:layers|h)\.(\d+)(?:\.(.+))?")
_ATTENTION = r"(?:self_attn|attn|attention)"
# What each half of a block adds to the residual stream, unless a norm follows it.
_OUTPUTS = (
    (_ATTENTION, "attn_out"),
    (rf"{_ATTENTION}\.(?:o_proj|c_proj|dense)", "attn_out"),
    (r"mlp", "mlp_out"),
    (r"mlp\.(?:down_proj|c_proj|dense_4h_to_h)", "mlp_out"),
)
_INPUTS = (
    (rf"{_ATTENTION}\.(?:o_proj|c_proj|dense)", "attn_z"),
    (r"mlp\.(?:down_proj|c_proj|dense_4h_to_h)", "mlp_act"),
)
# Gemma 2 and 3 have a norm behind attention and MLP; what is added to the stream is its output.
_NORMS_BEHIND = (
    ("post_attention_layernorm", "attn_out"),
    ("post_feedforward_layernorm", "mlp_out"),
)
_GEMMA = re.compile(r"gemma[-_]?v?[23]", re.IGNORECASE)


def site_of_hook(name: str) -> str | None:
    """The site of a TransformerLens hook, or of a module path read at its output; None where it is none.

    Raises:
        MicroscopeError: ``bad_site`` for the embedding, which looks like a site and is not recorded.
    """
    if re.fullmatch(r"blocks\.0\.hook_resid_pre|hook_embed", name):
        Site.parse("blocks.0.hook_resid_pre")
    try:
        return str(Site.parse(name))
    except MicroscopeError:
        return None


def site_of_module(path: str, end: End, *, model: str = "", family: str = "") -> str | None:
    """The site of a module's input or output, or None where it is none.

    Args:
        path: for example ``model.layers.3.mlp``, ``h.3`` or ``gpt_neox.layers.3.attention``.
        end: which end of the module is read.
        model: name of the model, which tells whether norms follow attention and MLP.
        family: its family, where that is known for certain.
    """
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    layer, inner = int(match[1]), match[2]
    if inner is None:
        layer = layer if end == "output" else layer - 1
        return f"resid_post.{layer}" if layer >= 0 else None
    known: tuple[tuple[str, str], ...] = _OUTPUTS if end == "output" else _INPUTS
    if (family == "gemma" or _GEMMA.search(model)) and end == "output":
        known = _NORMS_BEHIND
    kind = next((kind for pattern, kind in known if re.fullmatch(pattern, inner)), None)
    return None if kind is None else f"{kind}.{layer}"
