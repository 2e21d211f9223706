"""Module names of each model family's sites.

Facts follow the module trees of ``transformers``; a site is a module path plus "its input" or "its
output", so that a plain Hugging Face model needs no rewriting to be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from microscope.errors import MicroscopeError
from microscope.models.declarations import DECODERS
from microscope.params import SITE_KINDS, Site
from microscope.params.sites import SiteKind


@dataclass(frozen=True)
class Tap:
    """A module path within the model, the side of the module the activation is on, and a factor of it."""

    path: str
    side: Literal["input", "output"]
    scale: float = 1.0


@dataclass(frozen=True)
class Parts:
    """Modules of one block, by paths relative to it; None where there is none, or none that is proven.

    ``attention`` (in recurrent blocks the mixer of positions) and ``mlp`` are the modules whose *outputs*
    are added to the residual stream, times ``attention_scale`` and ``mlp_scale`` (with sandwich norms those
    are the norms behind the actual modules); the projections are their output matrices. ``between`` holds
    the residual stream between attention and MLP. ``adds_up`` says whether a block's output is its input plus
    what these two add, and nothing else; ``missing`` says why a site does not exist.
    """

    attention: str | None = None
    attention_projection: str | None = None
    between: Tap | None = None
    mlp: str | None = None
    mlp_projection: str | None = None
    attention_scale: float = 1.0
    mlp_scale: float = 1.0
    adds_up: bool = True
    missing: Mapping[SiteKind, str] = field(default_factory=dict)

    def tap(self, kind: SiteKind) -> Tap | None:
        """The module within the block, and its side, that hold a site's activation; None if it does not exist."""
        if kind == "resid_post":
            return Tap("", "output")
        if kind == "resid_mid":
            return self.between
        path, side, scale = {
            "attn_out": (self.attention, "output", self.attention_scale),
            "mlp_out": (self.mlp, "output", self.mlp_scale),
            "attn_z": (self.attention_projection, "input", 1.0),
            "mlp_act": (self.mlp_projection, "input", 1.0),
        }[kind]
        return None if path is None else Tap(path, side, scale)  # type: ignore[arg-type]

    @property
    def writers(self) -> tuple[str, ...]:
        """Modules whose outputs are added to the residual stream."""
        return tuple(path for path in (self.attention, self.mlp) if path is not None)

    @property
    def projections(self) -> tuple[str, ...]:
        """Their output matrices."""
        return tuple(p for p in (self.attention_projection, self.mlp_projection) if p is not None)


@dataclass(frozen=True)
class Family:
    """Module names of one kind of model: declared for known families, found by structure for all others.

    ``blocks`` is the path of the list of blocks. ``parts`` are those of every block, or ``per_block`` of
    each where they differ. ``causal`` is False for encoders, which see both ways and predict no next
    token. ``eager`` families need the plain attention code, because the fused one leaves out their soft
    caps. ``layer_kinds`` families read ``layer_types`` from the configuration, the others attend to
    everything. ``head`` is a decoder's unembedding, ``found`` whether structure and probes named the modules;
    ``width`` is then that of the residual stream.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    parts: Parts = Parts()
    per_block: tuple[Parts, ...] = ()
    causal: bool = True
    eager: bool = False
    layer_kinds: bool = False
    head: str = "lm_head"
    found: bool = False
    width: int | None = None

    def parts_of(self, layer: int) -> Parts:
        """The modules of one block."""
        return self.per_block[layer] if self.per_block else self.parts

    def block_path(self, layer: int) -> str:
        """Module path of a block."""
        return f"{self.blocks}.{layer}"

    def tap(self, site: Site) -> Tap:
        """The module and side that hold a site's activation.

        Raises:
            MicroscopeError: ``no_such_site`` with the reason.
        """
        parts = self.parts_of(site.layer)
        tap = parts.tap(site.kind)
        if tap is None:
            there = [kind for kind in SITE_KINDS if parts.tap(kind) is not None]
            reason = parts.missing.get(site.kind, "its blocks have no such activation")
            raise MicroscopeError(
                "no_such_site",
                f"Models of the family {self.name} have no {site}: {reason}.",
                f"Block {site.layer} has {', '.join(there)}.",
            )
        block = self.block_path(site.layer)
        return replace(tap, path=f"{block}.{tap.path}" if tap.path else block)

    def writers(self, n_layers: int) -> list[str]:
        """Paths of all modules whose outputs blocks add to the residual stream.

        Raises:
            MicroscopeError: ``writers_unknown`` when blocks add what no module is known to put out.
        """
        for layer in range(n_layers):
            parts = self.parts_of(layer)
            if not parts.adds_up:
                raise MicroscopeError(
                    "writers_unknown",
                    f"What block {layer} of the family {self.name} adds to the residual stream cannot be edited: "
                    f"{parts.missing.get('attn_out', 'it is not known which modules put it out')}.",
                    "Edit the block's output (resid_post) instead.",
                )
        return [f"{self.block_path(i)}.{part}" for i in range(n_layers) for part in self.parts_of(i).writers]

    def projections(self, n_layers: int) -> list[str]:
        """Paths of the matrices that write to the stream."""
        return [f"{self.block_path(i)}.{p}" for i in range(n_layers) for p in self.parts_of(i).projections]


_BERT = Parts(
    attention="attention.output.dense",
    attention_projection="attention.output.dense",
    between=Tap("attention.output", "output"),
    mlp="output.dense",
    mlp_projection="output.dense",
)


def _declared(name: str, *model_types: str) -> Family:
    """The family of model types whose composition is declared, with the same modules for all of them."""
    decoders = [decoder for decoder in DECODERS for kind in model_types if kind in decoder.model_types]
    first = decoders[0]
    attention, mlp, norms = first.attention, first.mlp, first.norms
    between = norms.mlp if isinstance(norms.mlp, str) else mlp.module
    parts = Parts(
        attention=norms.attention_behind or attention.module,
        attention_projection=f"{attention.module}.{attention.output}",
        between=None if first.parallel else Tap(between, "input"),
        mlp=norms.mlp_behind or mlp.module,
        mlp_projection=f"{mlp.module}.{mlp.output}",
        missing={"resid_mid": "attention and MLP run in parallel"} if first.parallel else {},
    )
    return Family(
        name,
        model_types,
        first.blocks,
        parts,
        eager=any(decoder.attention.softcap for decoder in decoders),
        layer_kinds=all(decoder.attention.window == "kinds" for decoder in decoders),
        head=first.head,
    )


FAMILIES: tuple[Family, ...] = (
    _declared("llama", "llama", "mistral"),
    _declared("qwen", "qwen2", "qwen3"),
    _declared("gpt2", "gpt2"),
    _declared("gemma", "gemma2", "gemma3_text"),
    _declared("gpt_neox", "gpt_neox"),
    Family("bert", ("bert",), "bert.encoder.layer", _BERT, causal=False),
    Family("roberta", ("roberta",), "roberta.encoder.layer", _BERT, causal=False),
)


def declared_family(model_type: str) -> Family | None:
    """The family that is declared for a type, None for all others."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


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
