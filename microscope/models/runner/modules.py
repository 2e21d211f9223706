"""Any decoder whose blocks are Hugging Face modules: Gemma-2 and 3, GPT-NeoX, Llama with rounded weights.

The blocks' own code runs; what is built here is what the whole model would hand them: masks, rotary
tables, and a stand-in for the cache that joins given keys and values with new ones and remembers the new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope.models.families import family_of
from microscope.models.runner.base import BlockRunner, KeyValue, Past, Rows, with_deltas
from microscope.models.runner.llama import full_attention_within
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product, as_product
from microscope.models.runner.taps import install_taps, patched


class _Past:
    """What a block's attention sees as its cache for one call."""

    def __init__(self, past: Past | None, start: int) -> None:
        self._past, self._start = past, start
        self.new: KeyValue | None = None

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values; return all."""
        self.new = KeyValue(key, value)
        return self.new if self._past is None else self._past.followed_by(self.new, self._start)


class ModuleRunner(BlockRunner):
    """Calls the model's blocks one by one.

    Args:
        model: a causal language model.
        body: its decoder (embedding, blocks, final norm, rotary tables).
        blocks: the list of blocks.
        embedding: token embedding module.
        norm: final norm module.
    """

    def __init__(self, model: Any, *, body: Any, blocks: Any, embedding: Any, norm: Any) -> None:
        config = model.config
        self.n_layers, self.d_model = config.num_hidden_layers, config.hidden_size
        self._model, self._body, self._blocks = model, body, blocks
        self._embedding, self._norm = embedding, norm
        self._head = model.get_output_embeddings()
        # Families that read these from their configuration set them; others pass over what stands there.
        self._kinds: Sequence[str] = ["full_attention"] * self.n_layers
        self._window: int | None = None
        self._softcap: float | None = None
        install_taps(model, blocks, family_of(model.config.model_type))
        self._products = [
            as_product(module)
            for owner in (*reversed(blocks), self._head)
            for module in owner.modules()
            if type(module) is nn.Linear  # rounded weights are of other types and compute themselves
        ]

    @property
    def products(self) -> Iterable[Product]:
        return self._products

    def embed(self, rows: Rows) -> Tensor:
        out: Tensor = self._embedding(rows.new)
        return out

    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Past | None, patch: BlockPatch | None = None
    ) -> tuple[Tensor, KeyValue]:
        kind, start, count = self._kinds[layer], rows.start, x.shape[1]
        positions = torch.arange(start, start + count, device=x.device)[None]
        seen = _Past(past if start else None, start)
        with patched(patch):
            out = self._blocks[layer](
                x,
                attention_mask=self._mask(kind, count, start, x),
                position_ids=positions,
                position_embeddings=self._rotary(x, positions, kind),
                **self._cache_arguments(seen),
            )
        assert seen.new is not None
        return (out[0] if isinstance(out, tuple) else out), seen.new

    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        normed = self.normalise(x)
        logits = with_deltas(normed, self._head(normed), deltas)
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def normalise(self, x: Tensor) -> Tensor:
        out: Tensor = self._norm(x)
        return out

    @property
    def unembedding(self) -> Tensor:
        weight: Tensor = self._head.weight
        return weight

    @property
    def final_gain(self) -> Tensor:
        gain: Tensor = self._norm.weight
        return gain

    def _rotary(self, x: Tensor, positions: Tensor, kind: str) -> Any:
        return self._body.rotary_emb(x, positions)

    def _cache_arguments(self, seen: _Past) -> dict[str, Any]:
        return {"past_key_values": seen}

    def _mask(self, kind: str, rows: int, start: int, x: Tensor) -> Tensor:
        """Additive causal mask ``[1, 1, rows, start + rows]``, within the sliding window where there is one."""
        end = start + rows
        query = torch.arange(start, end, device=x.device)[:, None]
        key = torch.arange(end, device=x.device)[None]
        allowed = key <= query
        if kind == "sliding_attention" and self._window:
            allowed &= key > query - self._window
        mask = torch.zeros(rows, end, dtype=x.dtype, device=x.device)
        return mask.masked_fill_(~allowed, torch.finfo(x.dtype).min)[None, None]


class LlamaModuleRunner(ModuleRunner):
    """Llama, Mistral, Qwen2 and Qwen3 whose weights are rounded: every product is its module's own."""

    def __init__(self, model: Any) -> None:
        body = model.model
        super().__init__(model, body=body, blocks=body.layers, embedding=body.embed_tokens, norm=body.norm)
        self.max_context = full_attention_within(model.config)


class Gemma2Runner(ModuleRunner):
    """Gemma-2: sandwich norms whose gain is 1 + weight, sliding windows, soft-capped logits."""

    def __init__(self, model: Any) -> None:
        body = model.model
        super().__init__(model, body=body, blocks=body.layers, embedding=body.embed_tokens, norm=body.norm)
        self._kinds, self._window = model.config.layer_types, model.config.sliding_window
        self._softcap = model.config.final_logit_softcapping

    @property
    def final_gain(self) -> Tensor:
        return 1 + super().final_gain.float()


class Gemma3Runner(Gemma2Runner):
    """Gemma-3: as Gemma-2, with another rotary table for blocks with a sliding window."""

    def _rotary(self, x: Tensor, positions: Tensor, kind: str) -> Any:
        return self._body.rotary_emb(x, positions, kind)


class GPTNeoXRunner(ModuleRunner):
    """GPT-NeoX and Pythia: attention and MLP read the same stream in parallel."""

    def __init__(self, model: Any) -> None:
        body = model.gpt_neox
        super().__init__(
            model, body=body, blocks=body.layers, embedding=body.embed_in, norm=body.final_layer_norm
        )

    def _cache_arguments(self, seen: _Past) -> dict[str, Any]:
        return {"layer_past": seen, "use_cache": True}
