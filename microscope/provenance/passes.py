"""A prompt's pass through a model's own blocks, frozen, with everything kept that attributions are read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.models.activation import activation_in, with_activation
from microscope.models.families import Tap
from microscope.models.own_blocks import Call, OwnBlocks
from microscope.models.stream import first_tensor, stream_of, with_stream
from microscope.params import Site
from microscope.params.provenance import MlpRule
from microscope.params.sites import SiteKind
from microscope.provenance.freeze import Attention, Freeze

# Sites that parts of an edge are told apart by.
_WATCHED: tuple[SiteKind, ...] = ("resid_mid", "attn_out", "mlp_out")
# How far a block run by itself may be from the model's own pass, relative: in float32, and where the model rounds more.
_SAME_EXACT, _SAME_HALF = 1e-3, 0.25
# From an activation ``[1, positions, width]``, and those of the block's sites so far, to what passes on instead.
Replace = Callable[[Tensor, Mapping[Site, Tensor]], Tensor]


@dataclass
class BlockPass:
    """One block's frozen run; tensors ``[1, positions, d]`` in float32 with their graph.

    Args:
        x: its input.
        out: its output, in front of a cut there.
        sites: the activations of its sites that exist, in front of cuts.
        attention: its attention operation, if it is one that could be followed.
        biases: leaves that stand in for the block's bias vectors, by name.
    """

    layer: int
    x: Tensor
    out: Tensor
    sites: Mapping[SiteKind, Tensor]
    attention: Attention | None
    biases: Mapping[str, Tensor]


@dataclass
class Frozen:
    """A run of several blocks: ``leaves`` are what passes at the sites that were cut, ``[1, positions, width]``."""

    blocks: dict[int, BlockPass] = field(default_factory=dict)
    leaves: dict[Site, Tensor] = field(default_factory=dict)

    def at(self, site: Site) -> Tensor:
        """The activation at a site, as the model computes it, ``[1, positions, width]``."""
        block = self.blocks[site.layer]
        return block.out if site.kind == "resid_post" else block.sites[site.kind]

    @property
    def biases(self) -> Iterator[Tensor]:
        """Leaves that stand in for bias vectors."""
        for block in self.blocks.values():
            yield from block.biases.values()


class PromptPass:
    """A prompt in a model, block by block, in float32 whatever the model runs in.

    Args:
        loaded: the model.
        tokens: ids ``[positions]``.

    Attributes:
        embedded: input of block 0 ``[positions, d]``, float32.
        exact: whether the model itself computes in float32.

    Raises:
        MicroscopeError: ``not_reproduced``, when a block that is run by itself gives other numbers than in the model;
            ``not_finite``, when there are no numbers to explain.
    """

    def __init__(self, loaded: LoadedModel, tokens: Sequence[int]) -> None:
        self.loaded, self.tokens = loaded, tuple(tokens)
        blocks: Any = loaded.model.get_submodule(loaded.family.blocks)
        self._own = OwnBlocks(loaded.model, blocks)
        ids = torch.tensor([list(tokens)], device=loaded.device)
        calls, outputs, _ = self._own.trace(ids)
        # As the blocks were called; the streams are made anew, in float32.
        self._calls = [_in_float32(call) for call in calls]
        self.exact = calls[0].x.dtype == torch.float32
        self._inputs: dict[int, Tensor] = {0: calls[0].x[0].float()}
        # Outputs of all blocks in the model's own pass ``[positions, d]``, in what the model runs in.
        self._outputs = [call.x[0] for call in calls[1:]] + [first_tensor(outputs[-1])[0]]
        if self.exact:
            self._inputs |= {layer + 1: out for layer, out in enumerate(self._outputs)}

    @property
    def embedded(self) -> Tensor:
        return self._inputs[0]

    def input_of(self, layer: int) -> Tensor:
        """Input of a block ``[positions, d]``, float32; of the number of blocks: the last one's output."""
        start = max(known for known in self._inputs if known <= layer)
        for below in range(start, layer):
            with torch.no_grad():
                run = self._run(below, self._inputs[below][None], {}, {})
            self._inputs[below + 1] = run.out[0].detach()
        return self._inputs[layer]

    def activation(self, site: Site) -> Tensor:
        """The activation at a site, ``[positions, width]``."""
        if site.kind == "resid_post":
            return self.input_of(site.layer + 1)
        return self.frozen(site.layer, site.layer).at(site)[0].detach()

    @torch.no_grad()
    def again(self, layer: int, x: Tensor) -> BlockPass:
        """One block on another stream ``[positions, d]``, in float32, without a graph."""
        return self._run(layer, x[None], {}, {}, check=False)

    def frozen(
        self, first: int, last: int, cuts: Mapping[Site, Replace] | None = None, mlp: MlpRule = "gates"
    ) -> Frozen:
        """Run blocks ``first … last`` frozen, and keep their graph.

        Args:
            cuts: at these sites, and at block ``first``'s input, nothing passes on but a leaf of the same numbers.
            mlp: what is held of MLPs.
        """
        cuts = cuts or {}
        held = Frozen()
        below = Site("resid_post", first - 1)
        x = self.input_of(first)[None]
        held.leaves[below] = x = cuts[below](x, {below: x}) if below in cuts else x.clone().requires_grad_()
        with torch.enable_grad():
            for layer in range(first, last + 1):
                block = self._run(layer, x, cuts, held.leaves, mlp=mlp)
                if block.attention is not None and last > first:
                    block.attention.scores = None  # as large as patterns, and looked at in single blocks only
                held.blocks[layer] = block
                x = block.out
                site = Site("resid_post", layer)
                if site in cuts:
                    x = cuts[site](x, {site: x})
                    held.leaves[site] = x
        return held

    def _run(
        self,
        layer: int,
        x: Tensor,
        cuts: Mapping[Site, Replace],
        leaves: dict[Site, Tensor],
        *,
        check: bool = True,
        mlp: MlpRule = "gates",
    ) -> BlockPass:
        """One block; cuts inside it take effect. ``check`` is whether ``x`` is its input in the model's own pass."""
        block: nn.Module = self._own.blocks[layer]
        weights, biases = self._weights(block)
        seen: dict[SiteKind, Tensor] = {}

        def take(kind: SiteKind, value: Tensor) -> Tensor | None:
            seen[kind], site = value, Site(kind, layer)
            if site not in cuts:
                return None
            known = {Site(k, layer): t for k, t in seen.items()} | {Site("resid_post", layer - 1): x}
            leaves[site] = cuts[site](value, known)
            return leaves[site]

        with ExitStack() as stack:
            for kind, tap in self._taps(layer).items():
                handle = watch(block.get_submodule(tap.path), tap, x.shape[:2], partial(take, kind))
                stack.callback(handle.remove)
            freeze = stack.enter_context(Freeze(mlp))
            out = first_tensor(self._own.run(self._calls[layer], x, weights=weights))
        if check:
            self._check(layer, out)
        attentions = [a for a in freeze.attentions if a.out.dim() == 4 and a.out.shape[2] == x.shape[1]]
        attention = attentions[0] if len(attentions) == 1 else None
        return BlockPass(layer, x, out, seen, attention, biases)

    def _check(self, layer: int, out: Tensor) -> None:
        """Whether a block, run by itself, does what it did in the model's pass."""
        wanted = self._outputs[layer].float()
        if not bool(wanted.isfinite().all()):
            raise MicroscopeError(
                "not_finite",
                f"Block {layer} of this model puts out numbers that are not finite on this prompt.",
                "Run the model in float32 or bfloat16, or choose another prompt.",
            )
        off = float((out.detach()[0] - wanted).norm() / wanted.norm().clamp_min(1e-12))
        if not off <= (_SAME_EXACT if self.exact else _SAME_HALF):
            raise MicroscopeError(
                "not_reproduced",
                f"Block {layer} of this model, run by itself, gives other numbers than in the model (off by {off:.2g} "
                "of their size): it depends on more than the residual stream.",
                "Provenance is not possible for this family of models.",
            )

    def _taps(self, layer: int) -> dict[SiteKind, Tap]:
        """Sites inside a block, by modules of the block."""
        parts = self.loaded.family.parts_of(layer)
        found = {kind: parts.tap(kind) for kind in _WATCHED}
        return {kind: tap for kind, tap in found.items() if tap is not None and tap.path}

    def _weights(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Float32 weights where the model's are not, and leaves that stand in for biases."""
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            if name.endswith("bias") and parameter.dim() == 1:
                leaf = parameter.detach().float().clone().requires_grad_()
                biases[name] = weights[name] = leaf
            elif parameter.dtype != torch.float32:
                weights[name] = parameter.detach().float()
        return weights, biases

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` of the last block's outputs ``[rows, d]``, the final norm frozen."""
        outside = {id(p) for p in self._own.blocks.parameters()}
        weights = {
            name: parameter.detach().float()
            for name, parameter in self.loaded.model.named_parameters()
            if id(parameter) not in outside
            and parameter.is_floating_point()
            and parameter.dtype != torch.float32
        }
        with torch.enable_grad(), Freeze("gradient"):
            return self._own.behind(x[None], weights=weights)[0]


def order(site: Site) -> float:
    """How far along the stream something is read or written: the input of block n is at n, its output at n + 1."""
    return site.layer + {"attn_out": 0.25, "resid_mid": 0.5, "mlp_out": 0.75, "resid_post": 1.0}[site.kind]


def watch(
    module: nn.Module, tap: Tap, shape: Sequence[int], take: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Show the activation at a site to ``take``, and pass on what it returns instead, if anything."""

    def read(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        held = stream_of(args, kwargs)
        changed = take(activation_in(held, tap, shape))
        return None if changed is None else with_stream(args, kwargs, with_activation(held, tap, changed))

    def written(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = take(activation_in(output, tap, shape))
        return None if changed is None else with_activation(output, tap, changed)

    if tap.side == "input":
        return module.register_forward_pre_hook(read, with_kwargs=True)
    return module.register_forward_hook(written)


def _in_float32(call: Call) -> Call:
    """A block's arguments with floating numbers in float32."""
    return Call(
        call.layer, call.x, tuple(map(_float32, call.args)), {k: _float32(v) for k, v in call.kwargs.items()}
    )


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, tuple | list):
        return type(value)(map(_float32, value))
    return value
