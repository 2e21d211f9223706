"""The plain model under hooks, found without the product: what its rows, logits and edits have to equal.

The blocks are found by running: they are the outermost list of modules whose members all ran, once each, and as many
as the hidden states that ``transformers`` returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from microscope.params import Edit
from microscope.sae import SparseAutoencoder
from tests.live_rig import Adapters, Saes, by_hand, input_times

Hook = Callable[..., Any]


class Plain:
    """A model of ``transformers``, in evaluation mode, and its blocks; None where it is no chain of blocks."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model = model
        self.blocks = _blocks(model, ids)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """``[positions, vocabulary]`` of token ids ``[positions]``."""
        logits: Tensor = self.model(ids[None], use_cache=False).logits
        return logits[0].float()

    @torch.no_grad()
    def streams(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs of every block, each ``[positions, d]``."""
        assert self.blocks is not None
        before: list[Tensor] = []
        after: list[Tensor] = []

        def enters(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before.append(args[0][0] if args else kwargs["hidden_states"][0])

        def leaves(_module: Any, _args: Any, output: Any) -> None:
            after.append(_first(output)[0])

        handles = [block.register_forward_pre_hook(enters, with_kwargs=True) for block in self.blocks]
        handles += [block.register_forward_hook(leaves) for block in self.blocks]
        with removed(handles):
            self.logits(ids)
        return before, after

    @torch.no_grad()
    def generated(self, ids: Tensor, count: int) -> list[int]:
        """The tokens that greedy ``generate`` adds."""
        out = self.model.generate(
            ids[None],
            attention_mask=torch.ones_like(ids)[None],
            do_sample=False,
            max_new_tokens=count,
            use_cache=False,
        )
        return out[0, len(ids) :].tolist()

    def said(self, ids: Tensor, count: int) -> list[int]:
        """The likeliest tokens, each of a pass of the whole text."""
        whole, end = ids, self.model.generation_config.eos_token_id
        while len(whole) < len(ids) + count:
            whole = torch.cat((whole, self.logits(whole)[-1:].argmax(1)))
            if int(whole[-1]) in (end if isinstance(end, list) else [end]):
                break
        return whole[len(ids) :].tolist()

    def edited(
        self,
        ids: Tensor,
        edits: Sequence[Edit],
        saes: Saes,
        *,
        writers: Sequence[str] = (),
        adapters: Adapters | None = None,
        prompt: int | None = None,
    ) -> Tensor:
        """Logits ``[positions, vocabulary]`` under edits, each by hooks on every position.

        Args:
            writers: modules whose outputs are all that is added to the stream, for what is ablated everywhere.
            adapters: those that edits name.
            prompt: how many of the positions are the prompt's.
        """
        assert self.blocks is not None
        handles = []
        for edit in edits:
            if edit.kind == "lora":
                for path, (a, b) in (adapters or {})[edit.adapter].factors.items():
                    module = self.model.get_submodule(path)
                    handles.append(module.register_forward_hook(_adds(edit.strength * b @ a)))
        away = _away([e for e in edits if e.kind == "ablate_everywhere"], saes)
        if away is not None:
            handles.append(self.blocks[0].register_forward_pre_hook(input_times(away), with_kwargs=True))
            handles += [
                self.model.get_submodule(path).register_forward_hook(_on_output(lambda x: x @ away))
                for path in writers
            ]
        for layer, block in enumerate(self.blocks):
            here = [e for e in edits if e.site == f"resid_post.{layer}" and e.kind != "ablate_everywhere"]
            if here:
                change = _sum(here, saes, len(ids) if prompt is None else prompt)
                handles.append(block.register_forward_hook(_on_output(change)))
        with removed(handles):
            return self.logits(ids)


@contextmanager
def removed(handles: Sequence[Any]) -> Iterator[None]:
    """Hooks that are gone afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module, ids: Tensor) -> nn.ModuleList | None:
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1}
    ran: Counter[nn.Module] = Counter()
    members = {member for modules in lists.values() for member in modules}
    handles = [member.register_forward_hook(lambda module, *_: ran.update([module])) for member in members]
    with removed(handles), torch.no_grad():
        out: Any = model(ids[None], output_hidden_states=True, use_cache=False)
    whole = {name: modules for name, modules in lists.items() if all(ran[m] == 1 for m in modules)}
    outermost = [
        modules
        for name, modules in whole.items()
        if not any(name.startswith(f"{other}.") for other in whole)
        and len(out.hidden_states or ()) == len(modules) + 1
    ]
    return outermost[0] if len(outermost) == 1 else None


def _first(output: Any) -> Tensor:
    """The stream in what a block returns: alone, or first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _adds(change: Tensor) -> Hook:
    return lambda _module, inputs, output: output + inputs[0] @ change.T


def _away(edits: Sequence[Edit], saes: Saes) -> Tensor | None:
    """``I − QQᵀ`` of the directions that are ablated everywhere, ``[d, d]``."""
    if not edits:
        return None
    rows = [saes[e.feature.sae].W_dec[e.feature.index] for e in edits if e.feature]
    q, _ = torch.linalg.qr(torch.stack(rows, 1).double())
    return (torch.eye(len(q), dtype=torch.float64) - q @ q.T).float()


def _on_output(change: Callable[[Tensor], Tensor]) -> Hook:
    def hook(_module: Any, _inputs: object, output: Any) -> Any:
        changed = change(_first(output))
        return type(output)((changed, *output[1:])) if isinstance(output, (tuple, list)) else changed

    return hook


def _sum(edits: Sequence[Edit], saes: Mapping[str, SparseAutoencoder], prompt: int) -> Any:
    """The stream with all edits of one site, ``[1, positions, d]``."""

    def changed(stream: Tensor) -> Tensor:
        x = stream[0]
        total = torch.zeros_like(x)
        for edit in edits:
            keep = torch.ones(len(x), dtype=torch.bool)
            where = edit.positions
            if where.mode == "from":
                keep[: where.start] = False
            elif where.mode == "generated":
                keep[:prompt] = False
            elif where.mode == "set":
                keep = torch.tensor([i in where.indices for i in range(len(x))])
            name = edit.sae or (edit.feature.sae if edit.feature else "")
            total += by_hand(edit, saes[name], x) * keep[:, None]
        return (x + total)[None]

    return changed
