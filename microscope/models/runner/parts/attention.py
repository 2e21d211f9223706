"""Self-attention of one block, composed as its family declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microscope.models import declarations
from microscope.models.runner.base import KeyValue, Past
from microscope.models.runner.parts.norms import Norm, norm_of
from microscope.models.runner.parts.positions import Positions, Seen
from microscope.models.runner.parts.projections import Projection
from microscope.models.runner.parts.rotary import Rotary
from microscope.models.runner.patch import BlockPatch
from microscope.models.runner.product import Product

# Kinds of blocks, as configurations list them.
_FULL, _WINDOWED = ("full_attention", "global"), ("sliding_attention", "local")


class SelfAttention:
    """From the normed stream ``[batch, rows, d]`` to what attention adds to it, with keys and values of its rows.

    Args:
        block: the block.
        declared: its attention's parts.
        config: the model's configuration.
        layer: number of the block.
        rotary: the model's rotary positions; None where it has others.
        norm: how norms of queries and keys are computed.
    """

    def __init__(
        self,
        block: nn.Module,
        declared: declarations.Attention,
        config: Any,
        layer: int,
        rotary: Rotary | None,
        norm: Callable[[nn.Module], Norm] = norm_of,
    ) -> None:
        module: Any = block.get_submodule(declared.module)
        self.inputs = Projection(block, [f"{declared.module}.{name}" for name in declared.inputs])
        self.output = Projection(block, [f"{declared.module}.{declared.output}"])
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._heads = _input_width(module.get_submodule(declared.output)) // self._head_dim
        self._kv_heads = (sum(self.inputs.widths) // self._head_dim - self._heads) // 2
        self._grouped = declared.grouped
        self._scale = 1.0 if declared.scale is None else float(getattr(module, declared.scale))
        self._softcap = setting(config, declared.softcap)
        self._clip = setting(config, declared.clip)
        self._growth: tuple[float, int] | None = None
        if declared.growing:
            rope = config.rope_parameters
            self._growth = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]
        self._sinks: Tensor | None = None if declared.sinks is None else getattr(module, declared.sinks)
        kinds = getattr(config, declared.kinds, None) or ["full_attention"] * (layer + 1)
        self.kind = str(kinds[layer])
        if declared.window == "kinds" and self.kind not in (*_FULL, *_WINDOWED):
            raise ValueError(f"block {layer} has attention of a kind that is not known: {self.kind}")
        windowed = declared.window == "all" or (declared.window == "kinds" and self.kind in _WINDOWED)
        self.window: int | None = (getattr(config, declared.window_size, None) or None) if windowed else None
        turned = rotary is not None and rotary.turns(config, layer, self.window)
        self._rotary = rotary if turned else None
        norms: list[Any] = [
            getattr(module, name or "", None) for name in (declared.query_norm, declared.key_norm)
        ]
        self._norms = None if None in norms else tuple(map(norm, norms))
        # Whether a row's query is a part of the projection of its own, up to norms of each head and the rotation.
        self._separable = not (
            declared.grouped
            or declared.clip
            or declared.growing
            or declared.norm_turned
            or declared.norm_over == "width"
        )
        self._wide, self._norm_turned = declared.norm_over == "width", declared.norm_turned

    @property
    def products(self) -> Iterator[Product]:
        """What may be packed."""
        yield from self.inputs.products
        yield from self.output.products

    def __call__(
        self, hidden: Tensor, positions: Positions, past: Past | None, patch: BlockPatch | None
    ) -> tuple[Tensor, KeyValue]:
        """All rows' outputs ``[batch, rows, d]``."""
        query, new = self._turned(self.inputs(hidden, patch), positions)
        z = self._attend(query, new, past, positions.start, positions.seen(self.window))
        return self.output(z, patch), new

    def last(self, hidden: Tensor, positions: Positions, past: Past | None) -> tuple[Tensor, KeyValue]:
        """The last row's output ``[batch, 1, d]``, with keys and values of all rows."""
        product = self.inputs.product
        if product is None or not self._separable:
            query, new = self._turned(self.inputs(hidden), positions)
        else:
            query, new = self._last_query(product, hidden, positions)
        z = self._attend(query[:, :, -1:], new, past, positions.start, positions.seen_by_last(self.window))
        return self.output(z), new

    def _last_query(self, product: Product, hidden: Tensor, positions: Positions) -> tuple[Tensor, KeyValue]:
        """The query of the last row alone ``[batch, heads, 1, head_dim]``, with keys and values of all rows."""
        (batch, rows, _), split, bias = hidden.shape, self._heads * self._head_dim, product.bias
        one = F.linear(hidden[:, -1:], product.weight[:split], None if bias is None else bias[:split])
        pairs = F.linear(hidden, product.weight[split:], None if bias is None else bias[split:])
        query = one.view(batch, 1, -1, self._head_dim)
        key, value = pairs.view(batch, rows, -1, self._head_dim).chunk(2, 2)
        if self._norms is not None:
            query, key = self._norms[0](query), self._norms[1](key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if self._rotary is not None:
            cos, sin = positions.tables(self.kind)
            query = self._rotary.turn(query, (cos[-1:], sin[-1:]))
            key = self._rotary.turn(key, (cos, sin))
        return query, KeyValue(key, value.transpose(1, 2))

    def _turned(self, y: Tensor, positions: Positions) -> tuple[Tensor, KeyValue]:
        """Queries ``[batch, heads, rows, head_dim]``, keys and values of projected rows, at their positions."""
        if self._clip is not None:
            y = y.clamp(-self._clip, self._clip)
        heads, pairs, norms = self._heads, self._kv_heads, self._norms
        batch, rows, _ = y.shape
        if self._grouped:
            groups = y.view(batch, rows, pairs, -1, self._head_dim)
            query, key, value = groups[:, :, :, :-2].flatten(2, 3), groups[:, :, :, -2], groups[:, :, :, -1]
            both = None
        else:
            if norms is not None and self._wide:
                widths = (heads * self._head_dim, pairs * self._head_dim, pairs * self._head_dim)
                wide_query, wide_key, wide_value = y.split(widths, -1)
                y = torch.cat((norms[0](wide_query), norms[1](wide_key), wide_value), -1)
            split = y.view(batch, rows, -1, self._head_dim)
            query, key, value = split.split((heads, pairs, pairs), 2)
            both = split[:, :, : heads + pairs]
        if norms is not None and not self._wide and not self._norm_turned:
            query, key, both = norms[0](query), norms[1](key), None
        both = (torch.cat((query, key), 2) if both is None else both).transpose(1, 2)
        if self._rotary is not None:
            both = self._rotary.turn(both, positions.tables(self.kind))
        query, key = both[:, :heads], both[:, heads:]
        if norms is not None and self._norm_turned:
            query, key = norms[0](query), norms[1](key)
        if self._growth is not None:
            query = query * positions.growth(*self._growth)
        return query, KeyValue(key, value.transpose(1, 2))

    def _attend(self, query: Tensor, new: KeyValue, past: Past | None, start: int, seen: Seen) -> Tensor:
        """Heads' outputs ``[batch, rows, heads·head_dim]``."""
        key, value = new if past is None or not start else past.followed_by(new, start)
        if seen.first:
            key, value = key[:, :, seen.first :], value[:, :, seen.first :]
        if self._softcap is None and self._sinks is None:
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=seen.mask,
                is_causal=seen.causal,
                scale=self._scale,
                enable_gqa=self._heads != self._kv_heads,
            )
        else:
            out = self._by_scores(query, key, value, seen)
        return out.transpose(1, 2).flatten(2)

    def _by_scores(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Tensor:
        """Attention whose scores are bounded, or shared with sinks: no fused operation computes those."""
        # Every query head has its own keys and values here, as the model computes it: bit for bit in half precision.
        shared = self._heads // self._kv_heads
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scores = (query @ key.transpose(-1, -2)) * self._scale
        if self._softcap is not None:
            scores = self._softcap * torch.tanh(scores / self._softcap)
        batch, _, rows, _ = query.shape
        mask = seen.mask
        if seen.causal:
            mask = torch.ones(rows, rows, dtype=torch.bool, device=query.device).tril_()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if self._sinks is None:
            return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        sinks = self._sinks.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, rows, 1)
        scores = torch.cat((scores, sinks), -1)
        return (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1] @ value


def setting(config: Any, name: str | None) -> float | None:
    """A number of the configuration; None where it is not declared, not there or not set."""
    value = None if name is None else getattr(config, name, None)
    return None if value is None else float(value)


def _input_width(module: Any) -> int:
    """Length of a projection's input rows."""
    return int(module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0])
