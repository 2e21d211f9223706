"""Any decoder: its own blocks, called one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope.models.families import Family
from microscope.models.own_blocks import OwnBlocks
from microscope.models.runner.base import BlockRunner, Rows
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product, as_product
from microscope.models.runner.state import Caches, History, is_growing, joined
from microscope.models.runner.tail import Tail
from microscope.models.runner.taps import install_taps, patched
from microscope.models.stream import first_tensor


class GeneralRunner(BlockRunner):
    """Calls the blocks of a model with the arguments that its own forward pass hands them.

    What a block keeps of earlier positions is what the model's own cache would: keys and values, or a
    recurrent state. Where a model has no cache that can be handed to its blocks, it is the block's inputs
    (``remembering`` is False), and the block runs on all of them again.

    Args:
        model: a causal language model.
        family: where its parts are.
        remembering: whether blocks get a cache.
    """

    path = "general"

    def __init__(self, model: Any, family: Family, *, remembering: bool = True) -> None:
        blocks: Any = model.get_submodule(family.blocks)
        self.own = OwnBlocks(model, blocks)
        self.n_layers = len(blocks)
        self._head = model.get_submodule(family.head)
        tokens = torch.arange(1, 5, device=self._head.weight.device)[None]
        _, outputs, _ = self.own.trace(tokens)
        top = first_tensor(outputs[-1])
        self.d_model = top.shape[-1]
        self.tail = Tail(model, self.own, self._head, top)
        self._caches = Caches(model.config, self.n_layers) if remembering else None
        self.cuttable = self._caches is None or self._caches.cuttable
        install_taps(model, blocks, family)
        self._products = [
            as_product(module)
            for owner in (*reversed(blocks), self._head)
            for module in owner.modules()
            if type(module) is nn.Linear  # rounded weights are of other types and compute themselves
        ]

    @property
    def products(self) -> Iterable[Product]:
        return self._products

    def rows(self, tokens: Tensor, start: int = 0) -> Rows:
        if self._caches is None:
            return Rows(tokens, start, (None, self.own.note(tokens, None)))
        if start and not self.cuttable and tokens.shape[1] > start + 1:
            # Recurrent blocks go on from their state one row at a time.
            each = [self.rows(tokens[:, : row + 1], row) for row in range(start, tokens.shape[1])]
            return Rows(tokens, start, (None, each))
        cache = self._caches.begin(start)
        return Rows(tokens, start, (cache, self.own.note(tokens[:, start:], cache)))

    def embed(self, rows: Rows) -> Tensor:
        _, noted = rows.arguments
        if isinstance(noted[0], Rows):
            return torch.cat([self.embed(one) for one in noted], 1)
        x: Tensor = noted[0].x
        return x[:, rows.start :] if self._caches is None else x

    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Any, patch: BlockPatch | None = None
    ) -> tuple[Tensor, Any]:
        cache, noted = rows.arguments
        if self._caches is None:
            history = (
                History(x) if past is None or not rows.start else past.followed_by(History(x), rows.start)
            )
            if patch is not None:
                patch.skip = rows.start
            with patched(patch):
                out = first_tensor(self.own.run(noted[layer], history.x))
            return out[:, rows.start :], History(x)
        if isinstance(noted[0], Rows):
            return self._one_by_one(layer, x, noted, past, patch)
        self._caches.put(cache, layer, past, rows.start)
        with patched(patch):
            out = first_tensor(self.own.run(noted[layer], x))
        return out, self._caches.take(cache, layer)

    def _one_by_one(
        self, layer: int, x: Tensor, noted: Sequence[Rows], past: Any, patch: BlockPatch | None
    ) -> tuple[Tensor, Any]:
        """Rows one after the other, behind a state that goes on in place."""
        past = past if is_growing(past) else past.growing()
        outs, news = [], []
        for one, row in zip(noted, x.split(1, 1), strict=True):
            each = None if patch is None else patch.alone()
            out, new = self.block(layer, row, one, past, each)
            if patch is not None and each is not None:
                patch.add_row(each)
            outs.append(out)
            news.append(new)
        return torch.cat(outs, 1), joined(news)

    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        return self.tail(x, deltas)

    def normalise(self, x: Tensor) -> Tensor:
        return self.tail.normalise(x)

    @property
    def unembedding(self) -> Tensor:
        weight: Tensor = self._head.weight
        return weight

    @property
    def final_gain(self) -> Tensor:
        return self.tail.gain
