"""Which weights write to the residual stream, found by differentiating what reaches it.

A weight θ *writes* when what reaches the stream is linear in it and keeps its coordinates: row t is
``y_t = g_t·θ·h_t + …`` with a number g_t and a vector h_t that do not depend on θ. Then, for any vector c and
numbers w_t, the gradient of ``Σ w_t c·y_t`` has c as a factor along the axis of the stream, and its product
with θ is what θ contributes to that sum. Where all contributions make up the whole sum, y is projected exactly by
projecting those weights: biases, experts, several matrices and factors between matrix and stream included, norms
behind the matrix not.

A bias of which one and the same multiple reaches a block's output at every position holds a constant exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models import LoadedModel, module_at
from microscope.models.sample import some_tokens
from microscope.models.stream import first_tensor, map_first, stream_of, with_stream

# Relative size of errors in a gradient, and in a sum of contributions: of float32, and of half precision.
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 6e-2


@dataclass(frozen=True)
class Written:
    """A weight by its path in the model, and its axis that is the stream's coordinates."""

    path: str
    axis: int


@dataclass(frozen=True)
class Place:
    """A module whose bias reaches its block's output times ``scale``; it has one, or a switch can give it one."""

    path: str
    scale: float
    has_bias: bool


@dataclass(frozen=True)
class Writing:
    """What writes to a model's stream.

    ``weights`` are by path of the module that they write through, ``""`` for the input of the first block;
    ``mixed`` are such paths whose output they do not make up, because there is a norm behind them, for one;
    ``elsewhere`` says that blocks read the embedding beside the stream. ``places`` are by block.
    """

    weights: Mapping[str, tuple[Written, ...]]
    mixed: tuple[str, ...]
    elsewhere: bool
    places: Mapping[int, tuple[Place, ...]]

    @property
    def all_weights(self) -> tuple[Written, ...]:
        """Every one of them once."""
        return tuple(dict.fromkeys(w for written in self.weights.values() for w in written))


def find_writing(loaded: LoadedModel) -> Writing:
    """Differentiate what a loaded model writes for a few random tokens; its weights stay as they are."""
    generator, tokens = torch.Generator().manual_seed(0), some_tokens(loaded)
    with _differentiable(loaded.model), torch.enable_grad():
        weights, mixed, elsewhere = _writers(loaded, tokens, generator)
        places = _places(loaded, tokens, generator)
    return Writing(weights, mixed, elsewhere, places)


def _writers(
    loaded: LoadedModel, tokens: Tensor, generator: torch.Generator
) -> tuple[dict[str, tuple[Written, ...]], tuple[str, ...], bool]:
    family, found, mixed = loaded.family, {}, []
    outside = _outside_blocks(loaded)
    seen: dict[str, Tensor] = {}

    def entry(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = stream_of(args, kwargs)
        seen[""] = x
        return with_stream(args, kwargs, _cut(x))

    def writer(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            y = first_tensor(output)
            seen[path] = y
            return map_first(output, _cut)

        return hook

    blocks = [(family.block_path(i), family.parts_of(i)) for i in range(loaded.n_layers)]
    paths = [f"{block}.{part}" for block, parts in blocks for part in parts.writers]
    hooks = [module_at(loaded.model, path).register_forward_hook(writer(path)) for path in paths]
    first = module_at(loaded.model, family.block_path(0))
    hooks.append(first.register_forward_pre_hook(entry, with_kwargs=True))
    _run(loaded, tokens, hooks)
    for path in ("", *paths):
        inside = outside if path == "" else _inside_block(loaded, path)
        y = seen.get(path)
        written, whole = ((), False) if y is None else _written(y, inside, generator)
        found[path] = written
        if not whole:
            mixed.append(path)
    embedding = {weight.path for weight in found[""]}
    reading = [y for path in paths if (y := seen.get(path)) is not None and y.requires_grad]
    elsewhere = _depend(reading, [weight for path, weight in outside if path in embedding])
    return found, tuple(mixed), elsewhere


def _depend(values: Sequence[Tensor], weights: Sequence[nn.Parameter]) -> bool:
    """Whether anything in ``values`` changes with any of the weights."""
    if not values or not weights:
        return False
    device = values[0].device  # blocks may be on several
    total = torch.stack([value.float().square().sum().to(device) for value in values]).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _written(
    y: Tensor, weights: Sequence[tuple[str, nn.Parameter]], generator: torch.Generator
) -> tuple[tuple[Written, ...], bool]:
    """The weights that write to ``y`` ``[1, rows, d]``, and whether they make up all of it."""
    if not y.requires_grad:
        return (), False
    c, w = _random(y.shape[-1], y, generator), 1 + _random(y.shape[1], y, generator).abs()
    value = (y[0].float() * w[:, None] * c).sum()
    candidates = [(path, weight) for path, weight in weights if len(c) in weight.shape]
    # Halves that read one norm share a part of the graph.
    gradients = torch.autograd.grad(
        value, [weight for _, weight in candidates], allow_unused=True, retain_graph=True
    )
    found, total, limit = [], 0.0, _tolerance(y)
    for (path, weight), gradient in zip(candidates, gradients, strict=True):
        axis = None if gradient is None else _axis_along(gradient.float(), c, limit)
        if gradient is not None and axis is not None:
            found.append(Written(path, axis))
            # A table of embeddings is large: copies of it in float64 would be several times the model.
            total += float((gradient.float() * weight.detach().float()).sum(dtype=torch.float64))
    size = float((w * y[0].detach().float().norm(dim=-1)).sum() * c.norm()) / len(c) ** 0.5
    return tuple(found), abs(total - float(value.detach())) <= limit * size


def _tolerance(x: Tensor) -> float:
    return _TOLERANCE if x.dtype == torch.float32 else _TOLERANCE_HALF


def _axis_along(gradient: Tensor, c: Tensor, limit: float) -> int | None:
    """The axis along which a gradient is a multiple of ``c`` everywhere; None when there is none, or no gradient."""
    size = float(gradient.norm())
    if size == 0:
        return None
    unit = c / c.norm()
    for axis, width in enumerate(gradient.shape):
        if width == len(c):
            rows = gradient.movedim(axis, -1)
            if float((rows - (rows @ unit)[..., None] * unit).norm()) <= limit * size:
                return axis
    return None


def _places(loaded: LoadedModel, tokens: Tensor, generator: torch.Generator) -> dict[int, tuple[Place, ...]]:
    """Modules of each block whose bias is a constant in its output."""
    outputs: dict[int, Tensor] = {}
    probes: dict[int, dict[str, Tensor]] = {}
    hooks = []
    blocks = [module_at(loaded.model, loaded.family.block_path(i)) for i in range(loaded.n_layers)]
    owners: dict[int, set[int]] = {}
    for layer, block in enumerate(blocks):
        for module in block.modules():
            owners.setdefault(id(module), set()).add(layer)

    def cut(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_stream(args, kwargs, _cut(stream_of(args, kwargs)))

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            outputs[layer] = first_tensor(output)

        return hook

    def add(probe: Tensor) -> Any:
        return lambda _module, _inputs, output: output + probe.to(output.dtype)

    for layer, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(cut, with_kwargs=True))
        hooks.append(block.register_forward_hook(keep(layer)))
        probes[layer] = {}
        for name, module in block.named_modules():
            # What several blocks share cannot hold a constant of one of them.
            if isinstance(module, nn.Linear | Conv1D) and len(owners[id(module)]) == 1:
                out = module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0]
                if out == loaded.d_model:
                    probe = torch.zeros(out, device=module.weight.device, requires_grad=True)
                    probes[layer][name] = probe
                    hooks.append(module.register_forward_hook(add(probe)))
    _run(loaded, tokens, hooks)
    found = {}
    for layer, block in enumerate(blocks):
        places = []
        for name, scale in _constants(outputs.pop(layer), probes[layer], generator):
            module = block.get_submodule(name)
            path = f"{loaded.family.block_path(layer)}.{name}"
            places.append(Place(path, scale, getattr(module, "bias", None) is not None))
        found[layer] = tuple(places)
    return found


def _constants(
    x: Tensor, probes: Mapping[str, Tensor], generator: torch.Generator
) -> Iterator[tuple[str, float]]:
    """The probes of which one multiple is in every row of ``x`` ``[1, rows, d]``, and that multiple."""
    if not x.requires_grad or not probes:
        return
    scales: list[list[float | None]] = []
    limit = _tolerance(x)
    for _ in range(2):  # with other weights of the rows a multiple that differs between them differs, too
        c, w = _random(x.shape[-1], x, generator), _random(x.shape[1], x, generator)
        value = (x[0].float() * w[:, None] * c).sum()
        gradients = torch.autograd.grad(value, list(probes.values()), allow_unused=True, retain_graph=True)
        row = []
        for gradient in gradients:
            along = None if gradient is None else _axis_along(gradient.float(), c, limit)
            row.append(
                None
                if gradient is None or along is None
                else float(gradient.double() @ c.double() / (c.double() @ c.double())) / float(w.sum())
            )
        scales.append(row)
    for name, first, second in zip(probes, *scales, strict=True):
        if first is not None and second is not None and abs(first - second) <= limit * abs(first):
            yield name, 1.0 if abs(first - 1) <= 1e-5 else (first + second) / 2


def _cut(x: Tensor) -> Tensor:
    """The same numbers without their past; a copy, because blocks may add to it in place."""
    return x.detach().clone()


def _run(loaded: LoadedModel, tokens: Tensor, hooks: Iterable[Any]) -> None:
    try:
        loaded.model(tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _differentiable(model: Any) -> Iterator[None]:
    """A model's weights can be differentiated by within; they are not afterwards."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, state in zip(weights, before, strict=True):
            weight.requires_grad_(state)


def _outside_blocks(loaded: LoadedModel) -> list[tuple[str, nn.Parameter]]:
    prefix = f"{loaded.family.blocks}."
    return [(path, p) for path, p in loaded.model.named_parameters() if not path.startswith(prefix)]


def _inside_block(loaded: LoadedModel, path: str) -> list[tuple[str, nn.Parameter]]:
    depth = loaded.family.blocks.count(".") + 2
    block = ".".join(path.split(".")[:depth])
    named = {id(p): name for name, p in loaded.model.named_parameters()}
    return [(named[id(p)], p) for p in module_at(loaded.model, block).parameters()]


def _random(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator).to(like.device)
