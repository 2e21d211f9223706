"""Llama and GPT-2 written out from their weights in float64, with patterns, norms and gates held; shares no code with
the product's frozen pass. And any model, replayed with its nonlinear parts held to what they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from microscope.sae import SparseAutoencoder

# What a head ``(layer, head)`` or an MLP ``(layer, "mlp")`` reads beside the stream, ``[positions, d]``.
Reads = Mapping[tuple[int, int | str], Tensor]
# From site, and what is there, to what passes on.
At = Callable[[str, Tensor, Mapping[str, Tensor]], Tensor]


class Held:
    """Numbers that are noted when first asked for, and the same from then on."""

    def __init__(self) -> None:
        self._known: dict[Any, Tensor] = {}

    def __call__(self, name: Any, made: Tensor) -> Tensor:
        """The number of a name: the first that was given, without its graph."""
        return self._known.setdefault(name, made.detach())


class WrittenOut:
    """A model of ``transformers`` as formulas.

    Args:
        model: of Llama's or GPT-2's kind.
        ids: tokens ``[positions]``.
        gates: whether the gates of MLPs are held, too.
    """

    def __init__(self, model: Any, ids: Tensor, *, gates: bool = True) -> None:
        self.gates = gates
        self.model = copy.deepcopy(model).double().requires_grad_(False)
        self.held = Held()
        self.ids = ids
        self.llama = hasattr(self.model, "model")
        inner = self.model.model if self.llama else self.model.transformer
        self.blocks = inner.layers if self.llama else inner.h
        places = torch.arange(len(ids))
        self.embedded = inner.embed_tokens(ids) if self.llama else inner.wte(ids) + inner.wpe(places)
        self.heads = self.model.config.num_attention_heads
        if self.llama:
            self._rotary = inner.rotary_emb(self.embedded[None], places[None])

    def run(
        self, x: Tensor, first: int, last: int, at: At | None = None, reads: Reads | None = None
    ) -> Tensor:
        """Output of block ``last`` for an input of block ``first``, ``[positions, d]`` both."""
        for layer in range(first, last + 1):
            x = self._block(layer, x, at or (lambda _site, y, _sites: y), reads or {})
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Of the last block's output; the norm held."""
        norm = self.model.model.norm if self.llama else self.model.transformer.ln_f
        return self.model.lm_head(self._norm("last", norm, x))

    def _block(self, layer: int, x: Tensor, at: At, reads: Reads) -> Tensor:
        sites: dict[str, Tensor] = {f"resid_post.{layer - 1}": x}

        def passed(kind: str, y: Tensor) -> Tensor:
            sites[f"{kind}.{layer}"] = y
            return at(f"{kind}.{layer}", y, sites)

        middle = passed("resid_mid", x + passed("attn_out", self._attention(layer, x, reads)))
        return passed("resid_post", middle + passed("mlp_out", self._mlp(layer, middle, reads)))

    def _attention(self, layer: int, x: Tensor, reads: Reads) -> Tensor:
        query, key, value = self.projected(layer, x)
        shared = self.heads // len(key)
        scores = query @ key.repeat_interleave(shared, 0).transpose(1, 2) / math.sqrt(query.shape[-1])
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = self.held(("pattern", layer), scores.masked_fill(hidden, -torch.inf).softmax(-1))
        z = torch.stack(
            [
                pattern[h]
                @ (self.projected(layer, x + reads[layer, h])[2] if (layer, h) in reads else value)[
                    h // shared
                ]
                for h in range(self.heads)
            ],
            1,
        ).flatten(1)
        block = self.blocks[layer]
        return block.self_attn.o_proj(z) if self.llama else block.attn.c_proj(z)

    def projected(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[heads, positions, head_dim]`` each."""
        block = self.blocks[layer]
        norm = self._norm(("first", layer), block.input_layernorm if self.llama else block.ln_1, x)
        if not self.llama:
            parts = block.attn.c_attn(norm).chunk(3, 1)
            return tuple(p.unflatten(1, (self.heads, -1)).transpose(0, 1) for p in parts)  # type: ignore[return-value]
        attention = block.self_attn
        query, key, value = (
            p(norm).unflatten(1, (-1, attention.head_dim)).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return self._rotated(query), self._rotated(key), value

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = (t[0].double() for t in self._rotary)
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    def _mlp(self, layer: int, middle: Tensor, reads: Reads) -> Tensor:
        block = self.blocks[layer]
        x = middle + reads.get((layer, "mlp"), 0.0)
        name = ("second", layer)
        if self.llama:
            norm, mlp = self._norm(name, block.post_attention_layernorm, x), block.mlp
            return mlp.down_proj(self._gate(layer, F.silu(mlp.gate_proj(norm))) * mlp.up_proj(norm))
        inner = block.mlp.c_fc(self._norm(name, block.ln_2, x))
        active = F.gelu(inner, approximate="tanh")
        return block.mlp.c_proj(inner * self._gate(layer, active / inner))

    def _gate(self, layer: int, made: Tensor) -> Tensor:
        return self.held(("gate", layer), made) if self.gates else made

    def _norm(self, name: Any, norm: Any, x: Tensor) -> Tensor:
        if not self.llama:
            x = x - x.mean(1, keepdim=True)
        eps = norm.variance_epsilon if self.llama else norm.eps
        spread = self.held((name, "spread"), (x.square().mean(1, keepdim=True) + eps).sqrt())
        return x / spread * norm.weight + (0.0 if self.llama else norm.bias)


@dataclass
class Split:
    """A row of activations as an SAE sees it, in float64: ``y = codes·gain·W_dec + constant + error (+ skip)``.

    ``codes`` are ``[positions, latents]``, ``gain`` ``[positions, 1]``, the others ``[positions, d]``.
    """

    codes: Tensor
    gain: Tensor
    constant: Tensor
    error: Tensor
    skip: Tensor


def split(sae: SparseAutoencoder, x: Tensor, y: Tensor, kept: Tensor) -> Split:
    """What an SAE makes of what it reads ``x`` and of what it writes ``y``, for the rows that are kept."""
    config, weights = sae.config, {k: v.double() for k, v in sae.state_dict().items()}
    scale, out = config.scale, config.scale_out if config.scale_out is not None else config.scale
    _, centre, spread = _normalised(config.input_norm, x)
    codes = _codes(sae, weights, pre_activations(sae, x)) * kept[:, None]
    undone = config.site_out is None and config.input_norm != "none"
    gain = (spread if undone else torch.ones_like(spread)) / out
    constant = (weights["b_dec"] * gain + (centre if undone else 0.0)) * kept[:, None]
    skip = scale * x @ weights["W_skip"].T / out if "W_skip" in weights else torch.zeros_like(y)
    error = y - skip - constant - (codes * gain) @ weights["W_dec"]
    return Split(codes, gain, constant, error, skip)


def pre_activations(sae: SparseAutoencoder, x: Tensor, held: Tensor | None = None) -> Tensor:
    """``[positions, latents]``; with the norm of rows ``held`` instead of their own."""
    weights = {k: v.double() for k, v in sae.state_dict().items()}
    u = sae.config.scale * _normalised(sae.config.input_norm, x, held)[0]
    if sae.config.apply_b_dec:
        u = u - weights["b_dec"]
    return u @ weights["W_enc"].T + weights["b_enc"]


def _normalised(kind: str, x: Tensor, held: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, what was subtracted, and what was divided by."""
    like = x if held is None else held
    one = torch.ones(len(x), 1, dtype=x.dtype)
    if kind == "none":
        return x, 0 * one, one
    if kind == "constant_norm":
        spread = like.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1])
        return x / spread, 0 * one, spread
    spread = like.std(1, keepdim=True)
    centre = x.mean(1, keepdim=True)
    return (x - centre) / (spread + 1e-5), centre, spread


def _codes(sae: SparseAutoencoder, weights: Mapping[str, Tensor], pre: Tensor) -> Tensor:
    config = sae.config
    match config.architecture:
        case "topk":
            return torch.where(pre >= pre.topk(config.k, 1).values[:, -1:], pre.relu(), 0.0)
        case "jumprelu":
            return torch.where(pre > weights["log_threshold"].exp(), pre, 0.0)
        case "gated":
            return (pre > 0) * (weights["r_mag"].exp() * (pre - weights["b_enc"]) + weights["b_mag"]).relu()
        case "batchtopk" | "matryoshka":
            return torch.where(pre > weights["threshold"] / weights["threshold_weight"], pre.relu(), 0.0)
        case "standard":
            return pre.relu()
        case "groupmax":
            groups = pre.unflatten(1, (config.k, -1))
            return torch.where(groups == groups.max(2, keepdim=True).values, groups.relu(), 0.0).flatten(1)
    raise AssertionError(config.architecture)


# --- any model ------------------------------------------------------------------------------------------------


@dataclass
class _Note:
    """What one operation is held to."""

    number: Tensor | None = None
    side: str = ""


@dataclass
class Tape(TorchFunctionMode):
    """Runs what it encloses, noting the constants of its nonlinear parts; later runs are held to the first one's.

    Activations times a number that depends on the stream, too, are gates; others are proportional to their input.
    """

    notes: list[_Note] = field(default_factory=list)
    place: int = -1
    gates: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def begin(self) -> Tape:
        """Before each run."""
        self.place = -1
        self.gates = {}
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("softmax", "rsqrt", "_softmax"):
            return self._held(lambda: func(*args, **kwargs))
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if name in ("silu", "gelu", "relu", "tanh", "sigmoid"):
            return self._activation(
                name, lambda: func(*args, **{k: v for k, v in kwargs.items() if k != "inplace"}), args[0]
            )
        if name in ("square", "pow") and id(args[0]) in self.gates:
            return self._activation(name, lambda: func(*args, **kwargs), args[0])
        if (
            name in ("mul", "__mul__", "__rmul__")
            and len(args) == 2
            and all(isinstance(a, Tensor) for a in args)
        ):
            return self._product(func, *args)
        out = func(*args, **kwargs)
        gated = [a for a in args if isinstance(a, Tensor) and id(a) in self.gates]
        if gated and name in (
            "add",
            "__add__",
            "__radd__",
            "dropout",
            "to",
            "view",
            "reshape",
            "__getitem__",
            "float",
            "type_as",
        ):
            self.gates[id(out)] = out, self._held(lambda: out)
        return out

    def _next(self) -> _Note:
        self.place += 1
        if self.place == len(self.notes):
            self.notes.append(_Note())
        return self.notes[self.place]

    def _held(self, made: Callable[[], Tensor]) -> Tensor:
        note = self._next()
        if note.number is None:
            note.number = made().detach()
        return note.number

    def _activation(self, name: str, made: Callable[[], Tensor], x: Tensor) -> Tensor:
        value = self._held(made)
        if name in ("tanh", "sigmoid"):
            out = value.clone()
        else:
            ratio = self._held(lambda: torch.where(x == 0, 0.0, value / x))
            out = x * ratio
        self.gates[id(out)] = out, value
        return out

    def _product(self, func: Any, left: Tensor, right: Tensor) -> Tensor:
        gates = [id(left) in self.gates, id(right) in self.gates]
        if not any(gates):
            return func(left, right)  # type: ignore[no-any-return]
        note = self._next()
        if not note.side:  # a gate, if what it multiplies depends on the stream
            other = right if gates[0] else left
            gate = left if gates[0] else right
            note.side = "gate" if other.requires_grad and gate.requires_grad else "number"
        if note.side == "number":
            out: Tensor = func(left, right)
            self.gates[id(out)] = out, self._held(lambda: out)
            return out
        return func(self.gates[id(left)][1], right) if gates[0] else func(left, self.gates[id(right)][1])  # type: ignore[no-any-return]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        shared = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(shared, 1) for t in (key, value))
        scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        if attn_mask is not None:
            scores = (
                scores.masked_fill(~attn_mask, -torch.inf)
                if attn_mask.dtype == torch.bool
                else scores + attn_mask
            )
        exps = (scores - scores.amax(-1, keepdim=True)).exp()
        return self._held(lambda: exps / exps.sum(-1, keepdim=True)) @ value

    def _layer_norm(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        out = centred / self._held(lambda: (centred.square().mean(-1, keepdim=True) + eps).sqrt())
        out = out if weight is None else out * weight
        return out if bias is None else out + bias


@contextmanager
def outputs_changed(
    blocks: Sequence[Any], change: Mapping[int, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Blocks whose output stream ``[positions, d]`` passes through a function."""

    def hook(make: Callable[[Tensor], Tensor]) -> Any:
        def changed(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (make(output[0][0])[None], *output[1:])
            return make(output[0])[None]

        return changed

    handles = [blocks[layer].register_forward_hook(hook(make)) for layer, make in change.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
