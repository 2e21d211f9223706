"""Module names of each model family's sites, which no other module knows.

Facts follow the module trees of ``transformers``; a site is a module path plus "its input" or "its
output", so that a plain Hugging Face model needs no rewriting to be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from microscope.errors import MicroscopeError
from microscope.params import Site


@dataclass(frozen=True)
class Tap:
    """A module path within the model and the side of the module the activation is on."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Module names of one kind of model.

    Paths from ``attention`` on are relative to a block. ``attention`` and ``mlp`` are the modules whose
    *outputs* are what is added to the residual stream (with sandwich norms those are the norms behind
    the actual modules); the projections are their output matrices. ``between`` holds the residual
    stream between attention and MLP, None where there is none (parallel blocks). ``causal`` is False
    for encoders, which see both ways and predict no next token. ``eager`` families need the plain
    attention code, because the fused one leaves out their soft caps. ``layer_kinds`` families read
    ``layer_types`` from the configuration, the others attend to everything. ``head`` is a decoder's
    unembedding.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    attention: str
    attention_projection: str
    between: Tap | None
    mlp: str
    mlp_projection: str
    causal: bool = True
    eager: bool = False
    layer_kinds: bool = False
    head: str = "lm_head"

    def tap(self, site: Site) -> Tap:
        """The module and side that hold a site's activation."""
        block = f"{self.blocks}.{site.layer}"
        match site.kind:
            case "resid_post":
                return Tap(block, "output")
            case "resid_mid":
                if self.between is None:
                    raise MicroscopeError(
                        "no_such_site",
                        f"Models of the family {self.name} have no {site}: attention and MLP run in parallel.",
                        "Use resid_post, attn_out or mlp_out.",
                    )
                return Tap(f"{block}.{self.between.path}", self.between.side)
            case "attn_out":
                return Tap(f"{block}.{self.attention}", "output")
            case "mlp_out":
                return Tap(f"{block}.{self.mlp}", "output")
            case "attn_z":
                return Tap(f"{block}.{self.attention_projection}", "input")
            case "mlp_act":
                return Tap(f"{block}.{self.mlp_projection}", "input")


_LLAMA_PATHS: dict[str, Any] = {
    "blocks": "model.layers",
    "attention": "self_attn",
    "attention_projection": "self_attn.o_proj",
    "between": Tap("post_attention_layernorm", "input"),
    "mlp": "mlp",
    "mlp_projection": "mlp.down_proj",
}
_BERT_PATHS: dict[str, Any] = {
    "attention": "attention.output.dense",
    "attention_projection": "attention.output.dense",
    "between": Tap("attention.output", "output"),
    "mlp": "output.dense",
    "mlp_projection": "output.dense",
    "causal": False,
}

FAMILIES: tuple[Family, ...] = (
    Family(name="llama", model_types=("llama", "mistral"), **_LLAMA_PATHS),
    Family(name="qwen", model_types=("qwen2", "qwen3"), layer_kinds=True, **_LLAMA_PATHS),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        blocks="transformer.h",
        attention="attn",
        attention_projection="attn.c_proj",
        between=Tap("ln_2", "input"),
        mlp="mlp",
        mlp_projection="mlp.c_proj",
    ),
    Family(
        name="gemma",
        model_types=("gemma2", "gemma3_text"),
        blocks="model.layers",
        attention="post_attention_layernorm",
        attention_projection="self_attn.o_proj",
        between=Tap("pre_feedforward_layernorm", "input"),
        mlp="post_feedforward_layernorm",
        mlp_projection="mlp.down_proj",
        eager=True,
        layer_kinds=True,
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        blocks="gpt_neox.layers",
        attention="attention",
        attention_projection="attention.dense",
        between=None,
        mlp="mlp",
        mlp_projection="mlp.dense_4h_to_h",
    ),
    Family(name="bert", model_types=("bert",), blocks="bert.encoder.layer", **_BERT_PATHS),
    Family(name="roberta", model_types=("roberta",), blocks="roberta.encoder.layer", **_BERT_PATHS),
)


def supported_types() -> tuple[str, ...]:
    """Every ``model_type`` that is supported, in alphabetical order."""
    return tuple(sorted(kind for family in FAMILIES for kind in family.model_types))


def family_of(model_type: str) -> Family:
    """The family of a configuration's ``model_type``.

    Raises:
        MicroscopeError: ``unsupported_family``.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise MicroscopeError(
        "unsupported_family",
        f"Models of type '{model_type}' are not supported.",
        f"Supported types: {', '.join(supported_types())}.",
    )


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path."""
    return model.get_submodule(path)


def check_site(site: Site, n_layers: int) -> None:
    """Raises :class:`MicroscopeError` ``layer_out_of_range`` when the model has no such block."""
    if not 0 <= site.layer < n_layers:
        raise MicroscopeError(
            "layer_out_of_range",
            f"Layer {site.layer} does not exist: the model has {n_layers} layers.",
            f"Choose a layer from 0 to {n_layers - 1}.",
        )
