"""Blocks as linear maps: attention patterns, norm denominators and gates held at what they are.

A model's own blocks run inside :class:`Freeze`. It answers the functions that make them nonlinear with ones
that give the same numbers and are linear in the residual stream:

* ``softmax``, and fused attention: the pattern is a constant, values pass;
* norms: the denominator is a constant, centring passes;
* activation functions: ``a(x) = x·c`` with ``c = a(x)/x`` a constant (the secant through the origin, as in
  layer-wise relevance propagation, Achtibat et al. 2024);
* a product of an activated gate and a linear part: the gate is a constant, the linear part passes.

So what a block writes is exactly the sum of what each part of its input and each of its biases contributes. With
``mlp="gradient"`` the last two are left alone, and gradients through MLPs are those at the operating point: they
follow small changes better, and their sum is another one than what is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from microscope.params.provenance import MlpRule
from microscope.provenance.scores import Made, Scores

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_ROOTS = {torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt}
_ATTENTION = {F.scaled_dot_product_attention}
_MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_PRODUCT = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply}
# Of an activation they are another activation, as in a squared ReLU.
_POWERS: set[Callable[..., Any]] = {torch.square, Tensor.square, torch.pow, Tensor.pow, Tensor.__pow__}
# What leaves a tensor's meaning as it is.
_SAME = {F.dropout, Tensor.to, Tensor.type_as, Tensor.float, Tensor.contiguous, Tensor.__getitem__}
_SAME |= {Tensor.__add__, Tensor.__radd__, Tensor.add, torch.add}  # of a gate and a number
_SAME |= {Tensor.view, Tensor.reshape, torch.reshape, Tensor.squeeze, Tensor.unsqueeze}
_ACTIVATIONS: set[Callable[..., Any]] = {
    *(F.silu, F.gelu, F.relu, F.relu6, F.leaky_relu, F.mish, F.elu, F.selu, F.softplus, F.hardswish),
    *(torch.relu, Tensor.relu, torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh),
    *(F.logsigmoid, F.quick_gelu if hasattr(F, "quick_gelu") else F.silu),
}
# These saturate away from zero, so that the secant through it says nothing; what they multiply is let through.
_BOUNDED: set[Callable[..., Any]] = {
    torch.sigmoid,
    Tensor.sigmoid,
    F.sigmoid,
    torch.tanh,
    Tensor.tanh,
    F.tanh,
}


@dataclass
class Attention:
    """One attention operation of a block, with its graph.

    Args:
        pattern: weights ``[batch, heads, queries, keys]``, constant.
        value: ``[batch, kv_heads, keys, head_dim]``.
        out: ``[batch, heads, queries, head_dim]``.
        query, key: after the rotary embedding, as multiplied; None where they were not seen.
        scores: in front of the softmax, mask and distances included, ``[batch, heads, queries, keys]``; in front of
            the bound where there is one (soft cap), then without the mask.
        scale: factor between ``query·key`` and scores; None where it was not seen.
        bounded: whether there is a bound.
    """

    pattern: Tensor
    value: Tensor
    out: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    scores: Tensor | None = None
    scale: float | None = None
    bounded: bool = False


@dataclass
class _Seen:
    """What is known of tensors of the running pass, by identity; they are kept alive so that ids stay theirs."""

    # A pattern, and how what the softmax was taken of was made.
    patterns: dict[int, tuple[Tensor, Made | None]] = field(default_factory=dict)
    gates: dict[int, Tensor] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)


class Freeze(TorchFunctionMode):
    """Runs what it encloses with its nonlinear parts held constant.

    Args:
        mlp: ``gates`` or ``gradient``.

    Attributes:
        attentions: what attention operations ran, in order.
    """

    def __init__(self, mlp: MlpRule = "gates") -> None:
        super().__init__()
        self._mlp = mlp
        self.attentions: list[Attention] = []
        self._seen = _Seen()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = self._run(func, args, kwargs)
        self._seen.scores.follow(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _ATTENTION:
            return self._fused(*args, **kwargs)
        if func in _SOFTMAX:
            return self._softmax(func, args, kwargs)
        if func in _ROOTS or (func in _POWERS and isinstance(args[-1], float) and args[-1] == -0.5):
            return func(*args, **kwargs).detach()
        if func is F.normalize:
            return _normalize(*args, **kwargs)
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is F.rms_norm or func is getattr(torch, "rms_norm", None):
            return _rms_norm(*args, **kwargs)
        if func in _MATMUL and len(args) == 2:
            return self._matmul(func, args)
        if self._mlp == "gates":
            if func in _ACTIVATIONS:
                return self._activation(func, args, kwargs)
            if func in _PRODUCT and len(args) == 2:
                return self._product(func, args)
            if func in _POWERS and id(args[0]) in self._seen.gates and args[0].requires_grad:
                return self._activation(func, args, kwargs)
        out = func(*args, **kwargs)
        if func in _SAME and isinstance(out, Tensor) and args:
            self._pass_on(args[0], out)
        return out

    def forget(self) -> None:
        """Between blocks: what was seen of tensors of one block means nothing in the next."""
        self._seen = _Seen()
        self.attentions = []

    # --- attention ------------------------------------------------------------------------------------

    def _fused(
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
        shared = query.shape[1] // key.shape[1] if query.dim() == 4 else 1
        wide_key, wide_value = (t.repeat_interleave(shared, 1) if shared > 1 else t for t in (key, value))
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        with torch.no_grad():
            scores = (query @ wide_key.transpose(-1, -2)) * factor
            if is_causal:
                mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril_()
                scores = scores.masked_fill(~mask, float("-inf"))
            if attn_mask is not None:
                scores = (
                    scores.masked_fill(~attn_mask, float("-inf"))
                    if attn_mask.dtype == torch.bool
                    else scores + attn_mask
                )
            # A row that sees nothing attends to nothing, as in the fused operation.
            pattern = scores.softmax(-1).nan_to_num(0.0)
        out = pattern @ wide_value
        self.attentions.append(Attention(pattern, value, out, query, key, scores, factor))
        return out

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        out: Tensor = func(*args, **kwargs).detach()
        self._seen.patterns[id(out)] = out, self._seen.scores.of(args[0])
        return out

    def _matmul(self, func: Any, args: tuple[Any, ...]) -> Tensor:
        left, right = args
        out: Tensor = func(left, right)
        known = self._seen.patterns.get(id(left))
        if known is None or out.dim() not in (3, 4):
            return out
        # Some blocks see heads as a batch, [heads, queries, keys].
        wide = out if out.dim() == 4 else out[None]
        pattern, value = (t if t.dim() == 4 else t[None] for t in (left, right))
        attention = Attention(pattern, value, wide)
        made = known[1]
        if made is not None:
            query, key, scores = (t if t.dim() == 4 else t[None] for t in (made.query, made.key, made.scores))
            attention = Attention(pattern, value, wide, query, key, scores, made.scale, made.bounded)
        self.attentions.append(attention)
        return wide if out.dim() == 4 else wide[0]

    # --- MLPs -----------------------------------------------------------------------------------------

    def _activation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        x, *rest = args
        kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        out: Tensor = func(x, *(r for r in rest if not isinstance(r, bool)), **kwargs).detach()
        if func in _BOUNDED:
            made = out
        else:
            known = x.detach()
            ratio = torch.where(known == 0, torch.zeros_like(known), out / known)
            made = x * ratio
            # Exactly the activation, whatever the quotient's rounding.
            made = made + (out - made.detach())
        self._seen.gates[id(made)] = made
        return made

    def _product(self, func: Any, args: tuple[Any, ...]) -> Any:
        left, right = args
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            gated = id(left) in self._seen.gates or id(right) in self._seen.gates
            if gated and left.requires_grad and right.requires_grad:
                return (
                    func(left.detach(), right) if id(left) in self._seen.gates else func(left, right.detach())
                )
            out: Tensor = func(left, right)
            if gated:
                self._seen.gates[id(out)] = out
            return out
        return func(*args)

    def _pass_on(self, before: Any, after: Tensor) -> None:
        """What is known of a tensor is true of what was made of it, too."""
        if id(before) in self._seen.patterns and after.dim() in (3, 4):
            self._seen.patterns[id(after)] = after, self._seen.patterns[id(before)][1]
        if id(before) in self._seen.gates:
            self._seen.gates[id(after)] = after


def _layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """``layer_norm`` with its standard deviation held constant."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * torch.rsqrt(centred.detach().pow(2).mean(dims, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """``normalize`` with its norm held constant."""
    return x / x.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def _rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``rms_norm`` with its root mean square held constant."""
    dims = tuple(range(-len(normalized_shape), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    out = x * torch.rsqrt(x.detach().pow(2).mean(dims, keepdim=True) + small)
    return out if weight is None else out * weight
