"""Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microscope.models.configuration import positions_of
from microscope.models.families import family_of
from microscope.models.runner.base import BlockRunner, KeyValue, Past, Rows, attend, attend_last, with_deltas
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product

# Model types that read a sliding window from their configuration; others pass over it.
_WINDOWED = {"mistral", "qwen2", "qwen3"}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


class _Block(NamedTuple):
    attention_norm: Tensor
    qkv: Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Product
    mlp_norm: Tensor
    gate_up: Product
    activation: Callable[[Tensor], Tensor]
    down: Product

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class LlamaRunner(BlockRunner):
    """Runs Hugging Face weights with the three input projections, and the two of the MLP, as one product each.

    The fused weights replace the storage of the originals, which become views of them: no memory is
    doubled and the Hugging Face forward pass computes what it did.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.n_layers, self.d_model = config.num_hidden_layers, config.hidden_size
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._qkv_widths = tuple(n * self._head_dim for n in (self._heads, self._kv_heads, self._kv_heads))
        self._eps = config.rms_norm_eps
        self._embedding: Tensor = model.model.embed_tokens.weight
        self._norm: Tensor = model.model.norm.weight
        self._head = Product(model.lm_head.weight)
        self._blocks = [_gather(layer) for layer in model.model.layers]
        self.max_context = full_attention_within(config)
        # A longer table would be another one where the rotation depends on the length.
        self._longest = positions_of(config, family_of(config.model_type))
        self._rotary = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0)

    def embed(self, rows: Rows) -> Tensor:
        return F.embedding(rows.new, self._embedding)

    @property
    def products(self) -> Iterator[Product]:
        for block in reversed(self._blocks):
            yield from block.products
        yield self._head

    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Past | None, patch: BlockPatch | None = None
    ) -> tuple[Tensor, KeyValue]:
        w, start, (batch, count, _) = self._blocks[layer], rows.start, x.shape
        hidden = F.rms_norm(x, (self.d_model,), w.attention_norm, self._eps)
        qkv = w.qkv(hidden)
        if patch is not None:
            qkv = _added(patch, _QKV, hidden, qkv, self._qkv_widths)
        qkv = qkv.view(batch, count, -1, self._head_dim)
        query, key, value = qkv.split((self._heads, self._kv_heads, self._kv_heads), 2)
        if w.query_norm is not None and w.key_norm is not None:
            query = F.rms_norm(query, (self._head_dim,), w.query_norm, self._eps)
            key = F.rms_norm(key, (self._head_dim,), w.key_norm, self._eps)
            turned = self._rotate(torch.cat((query, key), 2).transpose(1, 2), start)
        else:
            turned = self._rotate(qkv[:, :, : self._heads + self._kv_heads].transpose(1, 2), start)
        new = KeyValue(turned[:, self._heads :], value.transpose(1, 2))
        z = attend(turned[:, : self._heads], new, past, start, self._head_dim**-0.5)
        return self._rest(w, x, z, patch), new

    def last_row(self, layer: int, x: Tensor, rows: Rows, past: Past | None) -> tuple[Tensor, KeyValue]:
        w, start, (batch, count, _) = self._blocks[layer], rows.start, x.shape
        hidden = F.rms_norm(x, (self.d_model,), w.attention_norm, self._eps)
        split = self._qkv_widths[0]
        bias = w.qkv.bias
        query = F.linear(hidden[:, -1:], w.qkv.weight[:split], None if bias is None else bias[:split])
        pairs = F.linear(hidden, w.qkv.weight[split:], None if bias is None else bias[split:])
        query = query.view(batch, 1, -1, self._head_dim)
        key, value = pairs.view(batch, count, -1, self._head_dim).chunk(2, 2)
        if w.query_norm is not None and w.key_norm is not None:
            query = F.rms_norm(query, (self._head_dim,), w.query_norm, self._eps)
            key = F.rms_norm(key, (self._head_dim,), w.key_norm, self._eps)
        query = self._rotate(query.transpose(1, 2), start + count - 1)
        new = KeyValue(self._rotate(key.transpose(1, 2), start), value.transpose(1, 2))
        z = attend_last(query, new, past, start, self._head_dim**-0.5)
        return self._rest(w, x[:, -1:], z, None), new

    def _rest(self, w: _Block, x: Tensor, z: Tensor, patch: BlockPatch | None) -> Tensor:
        """What follows attention, for the stream ``x`` and the heads' outputs ``z`` of the same rows."""
        written = w.out(z)
        x = x + (written if patch is None else patch.written(patch.changed("self_attn.o_proj", z, written)))
        hidden = F.rms_norm(x, (self.d_model,), w.mlp_norm, self._eps)
        both = w.gate_up(hidden)
        if patch is not None:
            both = _added(patch, _GATE_UP, hidden, both, (both.shape[-1] // 2,) * 2)
        gate, up = both.chunk(2, -1)
        inner = w.activation(gate) * up
        written = w.down(inner)
        if patch is not None:
            written = patch.written(patch.changed("mlp.down_proj", inner, written))
        return x + written

    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        normed = self.normalise(x)
        return with_deltas(normed, self._head(normed), deltas)

    def normalise(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.d_model,), self._norm, self._eps)

    @property
    def unembedding(self) -> Tensor:
        return self._head.weight

    @property
    def final_gain(self) -> Tensor:
        return self._norm

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotary positions on ``[batch, heads, rows, head_dim]``; tables are made once and grow as needed."""
        end = start + x.shape[2]
        if self._cos.shape[0] < end:
            # No inference tensors, even where the first caller runs in inference mode: runs with gradients use them, too.
            with torch.inference_mode(False), torch.no_grad():
                length = max(end, min(max(256, 2 * end), self._longest))
                positions = torch.arange(length, device=x.device)[None]
                cos, sin = self._rotary(torch.empty(0, dtype=x.dtype, device=x.device), positions)
            self._cos, self._sin = cos[0], sin[0]
        half = self._head_dim // 2
        swapped = torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * self._cos[start:end] + swapped * self._sin[start:end]


def full_attention_within(config: Any) -> int | None:
    """Longest sequence on which a sliding window leaves attention full; None without a window."""
    window = getattr(config, "sliding_window", None) if config.model_type in _WINDOWED else None
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def _added(patch: BlockPatch, modules: Sequence[str], x: Tensor, y: Tensor, widths: Sequence[int]) -> Tensor:
    """The output ``y`` of several modules in one product, with the deltas of each in its own columns."""
    extras = [patch.added(module, x) for module in modules]
    if all(extra is None for extra in extras):
        return y
    columns = [
        part if extra is None else part + extra.to(part.dtype)
        for part, extra in zip(y.split(tuple(widths), -1), extras, strict=True)
    ]
    return torch.cat(columns, -1)


def _gather(layer: Any) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    return _Block(
        attention_norm=layer.input_layernorm.weight,
        qkv=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=getattr(getattr(attention, "q_norm", None), "weight", None),
        key_norm=getattr(getattr(attention, "k_norm", None), "weight", None),
        out=Product(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_fuse(mlp.gate_proj, mlp.up_proj),
        activation=mlp.act_fn,  # the module's own: some have weights
        down=Product(mlp.down_proj.weight, mlp.down_proj.bias),
    )


def _fuse(*linears: nn.Linear) -> Product:
    """One weight ``[Σ out, in]`` whose row blocks are, from now on, the given layers' weights."""
    fused = torch.cat([linear.weight.detach() for linear in linears])
    row = 0
    for linear in linears:
        rows = linear.weight.shape[0]
        linear.weight = nn.Parameter(fused[row : row + rows], requires_grad=False)
        row += rows
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return Product(fused, torch.cat(biases) if biases else None)
