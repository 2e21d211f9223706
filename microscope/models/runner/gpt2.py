"""GPT-2: LayerNorm, learned positions, Conv1D weights stored input-first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from microscope.models.runner.base import BlockRunner, KeyValue, Past, Rows, attend, with_deltas
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product


class _Products(NamedTuple):
    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class GPT2Runner(BlockRunner):
    """Runs the modules of a ``GPT2LMHeadModel``; matrices are Conv1D, or linear layers where they are rounded."""

    def __init__(self, model: Any) -> None:
        config, body = model.config, model.transformer
        self.n_layers, self.d_model = config.num_hidden_layers, config.hidden_size
        self._heads = config.num_attention_heads
        self._head_dim = self.d_model // self._heads
        self._tokens, self._positions = body.wte.weight, body.wpe.weight
        self._blocks, self._norm, self._head = body.h, body.ln_f, Product(model.lm_head.weight)
        self._layers = [
            _Products(
                _conv1d(block.attn.c_attn),
                _conv1d(block.attn.c_proj),
                _conv1d(block.mlp.c_fc),
                _conv1d(block.mlp.c_proj),
            )
            for block in body.h
        ]

    def embed(self, rows: Rows) -> Tensor:
        tokens, start = rows.new, rows.start
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return F.embedding(tokens, self._tokens) + F.embedding(positions, self._positions)

    @property
    def products(self) -> Iterator[Product]:
        for layer in reversed(self._layers):
            yield from (product for product in layer if isinstance(product, Product))
        yield self._head

    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Past | None, patch: BlockPatch | None = None
    ) -> tuple[Tensor, KeyValue]:
        module, w, (batch, count, _) = self._blocks[layer], self._layers[layer], x.shape
        hidden = module.ln_1(x)
        qkv = w.qkv(hidden)
        if patch is not None:
            qkv = patch.changed("attn.c_attn", hidden, qkv)
        qkv = qkv.view(batch, count, 3, self._heads, self._head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        new = KeyValue(key, value)
        z = attend(query, new, past, rows.start, module.attn.scaling)
        written = w.out(z)
        x = x + (written if patch is None else patch.written(patch.changed("attn.c_proj", z, written)))
        hidden = module.ln_2(x)
        inner = w.up(hidden)
        inner = module.mlp.act(inner if patch is None else patch.changed("mlp.c_fc", hidden, inner))
        written = w.down(inner)
        if patch is not None:
            written = patch.written(patch.changed("mlp.c_proj", inner, written))
        return x + written, new

    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        normed = self.normalise(x)
        return with_deltas(normed, self._head(normed), deltas)

    def normalise(self, x: Tensor) -> Tensor:
        out: Tensor = self._norm(x)
        return out

    @property
    def unembedding(self) -> Tensor:
        return self._head.weight

    @property
    def final_gain(self) -> Tensor:
        gain: Tensor = self._norm.weight
        return gain


def _conv1d(layer: Any) -> Callable[[Tensor], Tensor]:
    """A matrix as a product; one that is rounded computes itself."""
    return Product(layer.weight.t(), layer.bias) if isinstance(layer, Conv1D) else layer
