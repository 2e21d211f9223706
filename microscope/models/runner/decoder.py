"""One runner for every declared family: parts composed to blocks, and blocks to a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope.models import declarations
from microscope.models.families import Family
from microscope.models.runner.base import BlockRunner, KeyValue, Past, Rows, with_deltas
from microscope.models.runner.parts.attention import SelfAttention, setting
from microscope.models.runner.parts.mlp import ComposedMlp, OwnMlp, mlp_of
from microscope.models.runner.parts.norms import Norm, gain_of, norm_of, own_norm
from microscope.models.runner.parts.positions import Positions
from microscope.models.runner.parts.rotary import Rotary
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product
from microscope.models.runner.taps import install_taps


class _Block(NamedTuple):
    attention: SelfAttention
    mlp: ComposedMlp | OwnMlp
    attention_norm: Norm | None
    attention_behind: Norm | None
    mlp_norm: Norm | None
    mlp_behind: Norm | None


class DecoderRunner(BlockRunner):
    """Computes with a model's weights what its family declares, in as few operations as that takes.

    Args:
        model: a causal language model.
        declared: its family's composition.
        family: where its parts are.
        longest: positions for which its rotary tables are the same at every length.

    Raises:
        AttributeError: the model lacks a module of the declaration.
        LookupError: its configuration lacks a setting.
        ValueError: its configuration asks for what the declaration leaves out.
    """

    def __init__(self, model: Any, declared: declarations.Decoder, family: Family, longest: int) -> None:
        config = model.config
        self.n_layers, self.d_model = config.num_hidden_layers, config.hidden_size
        self._tokens = model.get_submodule(declared.tokens)
        self._positions = None if declared.positions is None else model.get_submodule(declared.positions)
        self._first_position = declared.first_position
        self._norm = norm_of(model.get_submodule(declared.norm))
        head = model.get_submodule(declared.head)
        self._head = Product(head.weight, head.bias)
        self._rotary = None
        if declared.rotary is not None:
            module = model.get_submodule(declared.rotary.module)
            self._rotary = Rotary(module, declared.rotary, longest)
        blocks = list(model.get_submodule(declared.blocks))
        mlps = [mlp_of(block, declared.mlp) for block in blocks]
        norm = norm_of
        if any(isinstance(mlp, OwnMlp) for mlp in mlps):
            # In half precision another rounding of the stream would send some rows to other experts than the model's.
            norm = own_norm
            install_taps(model, blocks, family)
        self._blocks = [
            _Block(
                SelfAttention(block, declared.attention, config, layer, self._rotary, norm),
                mlp,
                *_norms(block, declared.norms, norm),
            )
            for layer, (block, mlp) in enumerate(zip(blocks, mlps, strict=True))
        ]
        self._parallel = declared.parallel is True or bool(
            declared.parallel and getattr(config, str(declared.parallel), False)
        )
        self._embedding_times = setting(config, declared.embedding_times)
        self._residual_times = setting(config, declared.residual_times)
        times, over = setting(config, declared.logits_times), setting(config, declared.logits_over)
        self._logits_scale = (1.0 if times is None else times) / (1.0 if over is None else over)
        self._logits_cap = setting(config, declared.logits_cap)

    def rows(self, tokens: Tensor, start: int = 0) -> Rows:
        positions = Positions(start, tokens.shape[1], self._rotary, self._tokens.weight)
        return Rows(tokens, start, positions)

    def embed(self, rows: Rows) -> Tensor:
        x: Tensor = self._tokens(rows.new)
        if self._embedding_times is not None:
            x = x * self._embedding_times
        if self._positions is not None:
            first = self._first_position + rows.start
            x = x + self._positions.weight[first : first + x.shape[1]]
        return x

    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Past | None, patch: BlockPatch | None = None
    ) -> tuple[Tensor, KeyValue]:
        w = self._blocks[layer]
        hidden = x if w.attention_norm is None else w.attention_norm(x)
        written, new = w.attention(hidden, rows.arguments, past, patch)
        return self._rest(w, x, hidden, written, patch), new

    def last_row(self, layer: int, x: Tensor, rows: Rows, past: Past | None) -> tuple[Tensor, KeyValue]:
        w = self._blocks[layer]
        hidden = x if w.attention_norm is None else w.attention_norm(x)
        written, new = w.attention.last(hidden, rows.arguments, past)
        return self._rest(w, x[:, -1:], hidden[:, -1:], written, None), new

    def _rest(
        self, w: _Block, x: Tensor, hidden: Tensor, attended: Tensor, patch: BlockPatch | None
    ) -> Tensor:
        """What follows attention, of the same rows: stream ``x``, its norm ``hidden``, attention's output."""
        attended = self._written(attended, w.attention_behind, patch)
        if not self._parallel:
            x = x + attended
        if w.mlp_norm is not None:
            hidden = w.mlp_norm(x)
        elif not self._parallel:
            hidden = x
        made = self._written(w.mlp(hidden, patch), w.mlp_behind, patch)
        return x + (made + attended) if self._parallel else x + made

    def _written(self, y: Tensor, behind: Norm | None, patch: BlockPatch | None) -> Tensor:
        """What a half adds to the stream."""
        if behind is not None:
            y = behind(y)
        if self._residual_times is not None:
            y = y * self._residual_times
        return y if patch is None else patch.written(y)

    @property
    def products(self) -> Iterator[Product]:
        for block in reversed(self._blocks):
            yield from block.attention.products
            yield from block.mlp.products
        yield self._head

    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        normed = self.normalise(x)
        logits = with_deltas(normed, self._head(normed), deltas)
        if self._logits_scale != 1:
            logits = logits * self._logits_scale
        if self._logits_cap is not None:
            logits = self._logits_cap * torch.tanh(logits / self._logits_cap)
        return logits

    def normalise(self, x: Tensor) -> Tensor:
        return self._norm(x)

    @property
    def unembedding(self) -> Tensor:
        return self._head.weight

    @property
    def final_gain(self) -> Tensor:
        return gain_of(self._norm, self._head.weight[0])


def _norms(
    block: nn.Module, declared: declarations.Norms, norm: Callable[[nn.Module], Norm]
) -> Iterator[Norm | None]:
    """A block's norms, in the order in which they act; None where it has none."""
    for paths in (declared.attention, declared.attention_behind, declared.mlp, declared.mlp_behind):
        names = (paths,) if isinstance(paths, str) else paths or ()
        found = next((module for name in names if (module := getattr(block, name, None)) is not None), None)
        yield None if found is None else norm(found)
