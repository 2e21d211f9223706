"""A plan applied to a plain Hugging Face model by hooks, over whole batches of sequences.

This is the slow, obvious way: every layer, every position. The live path reuses what a plan cannot
change and must agree with it; fitting and certifying need it because they look inside modules and
compare with models that other libraries loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope.errors import MicroscopeError
from microscope.models import Family, LoadedModel, module_at
from microscope.models.runner import Delta
from microscope.models.sample import some_tokens
from microscope.models.stream import first_tensor, map_first, stream_of, with_stream
from microscope.params import EditPlan
from microscope.patching.adapters import LowRank
from microscope.patching.apply import Saes, SiteEdits, edits_by_layer
from microscope.patching.program import Adapters, factors_of, span_of

Observer = Callable[[int, Tensor], None]


class PatchedModel:
    """Runs token ids through a model under a plan. Hooks exist only while a call runs.

    Args:
        loaded: the model; its weights are not touched.
        plan: what to change.
        saes: autoencoders by fingerprint.
        adapters: low-rank deltas by fingerprint.
        share: how much of every change is made; 0.5 is the patch at half strength.
    """

    def __init__(
        self, loaded: LoadedModel, plan: EditPlan, saes: Saes, adapters: Adapters, *, share: float = 1.0
    ) -> None:
        self._loaded, self._saes, self._share = loaded, saes, share
        self._sites = edits_by_layer(plan)
        deltas = deltas_of(plan, adapters)
        self._deltas = {path: LowRank(d.a, share * d.b) for path, d in deltas.items()}
        self._span = span_of(plan, saes)
        self._special = torch.tensor(sorted(loaded.tokenizer.all_special_ids), dtype=torch.long)
        self._tokens = torch.empty(0, dtype=torch.long)
        self._prompts: Sequence[int | None] = ()
        self._fired = torch.empty(0, dtype=torch.bool)

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tensor,
        observe: Observer | None = None,
        prompts: Sequence[int | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and where edits fired.

        Args:
            tokens: ids ``[batch, positions]``; padding must be on the right.
            observe: called at each edited block with its number and the deltas ``[batch, positions, d]``.
            prompts: length of each row's prompt, behind which positions count as generated; None when all of
                it is prompt.

        Returns:
            Logits ``[batch, positions, vocabulary]`` and a mask ``[batch, positions]`` of the positions
            where an edit of a site changed the stream; edits of weights change all.
        """
        self._tokens = tokens
        self._prompts = prompts or [None] * len(tokens)
        weights = bool(self._deltas) or self._span is not None
        self._fired = torch.full(tokens.shape, weights, dtype=torch.bool)
        model, family = self._loaded.model, self._loaded.family
        handles = add_deltas(model, self._deltas)
        if self._span is not None:
            handles += project_writers(self._loaded, self._span, self._share)
        try:
            for layer, edits in self._sites.items():
                block = module_at(model, family.block_path(layer))
                handles.append(block.register_forward_hook(self._edit(edits, observe)))
            logits: Tensor = model(tokens.to(self._loaded.device), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits, self._fired

    @torch.no_grad()
    def base(self, tokens: Tensor) -> Tensor:
        """Logits ``[batch, positions, vocabulary]`` of the model without the plan."""
        logits: Tensor = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
        return logits

    def _edit(self, edits: SiteEdits, observe: Observer | None) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            x = first_tensor(output)
            changed, deltas = x.clone(), torch.zeros_like(x, dtype=torch.float32)
            for row, (stream, ids, prompt) in enumerate(zip(x, self._tokens, self._prompts, strict=True)):
                special = torch.isin(ids, self._special).to(x.device)
                delta, effects = edits.delta(stream, self._saes, special, prompt=prompt)
                for effect in effects:
                    self._fired[row, list(effect.positions)] = True
                if delta is not None:
                    delta = self._share * delta
                    changed[row], deltas[row] = stream + delta.to(stream.dtype), delta
            if observe is not None:
                observe(edits.layer, deltas)
            return map_first(output, lambda _: changed)

        return hook


def deltas_of(plan: EditPlan, adapters: Adapters) -> dict[str, LowRank]:
    """The plan's low-rank deltas by module, several on one module stacked as more columns, strengths folded in."""
    stacks: dict[str, list[LowRank]] = {}
    for edit in plan.active():
        for path, (a, b) in factors_of(edit, adapters).items():
            stacks.setdefault(path, []).append(LowRank(a.float(), edit.strength * b.float()))
    return {path: stack(parts) for path, parts in stacks.items()}


def stack(parts: Sequence[LowRank]) -> LowRank:
    """The sum of several deltas of one module as one delta of higher rank."""
    return LowRank(torch.cat([p.a for p in parts]), torch.cat([p.b for p in parts], dim=1))


def add_deltas(model: Any, deltas: Mapping[str, LowRank]) -> list[Any]:
    """Hooks that add ``B(Ax)`` to the outputs of modules."""
    return [
        module_at(model, path).register_forward_hook(_adder(delta.a, delta.b))
        for path, delta in deltas.items()
    ]


@torch.no_grad()
def check_called(loaded: LoadedModel, paths: Collection[str]) -> None:
    """Run a few tokens and see whether modules are called, and whether they return what they compute and no more.

    Raises:
        MicroscopeError: ``module_not_linear``: a change beside such a module would do nothing, or something else.
    """
    returned: dict[str, Any] = {}

    def note(path: str) -> Any:
        return lambda _module, _inputs, output: returned.update({path: output})

    handles = [module_at(loaded.model, path).register_forward_hook(note(path)) for path in paths]
    try:
        loaded.model(some_tokens(loaded), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if not isinstance(returned.get(path), Tensor):
            why = "returns more than its product" if path in returned else "has its weight read by others"
            raise MicroscopeError(
                "module_not_linear",
                f"The adapter changes '{path}', which {why} in this model: an adapter beside it is no change of its weight.",
                "Leave that module out, or merge the adapter into a checkpoint.",
            )


def _adder(a: Tensor, b: Tensor) -> Any:
    delta = Delta(0, a, b, 1.0)

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + delta(inputs[0]).to(output.dtype)

    return hook


def add_constants(model: Any, family: Family, constants: Mapping[int, Tensor]) -> list[Any]:
    """Hooks that add vectors ``[d]`` to the outputs of blocks."""

    def adder(constant: Tensor) -> Any:
        return lambda _module, _inputs, output: map_first(output, lambda x: x + constant.to(x))

    return [
        module_at(model, family.block_path(layer)).register_forward_hook(adder(constant))
        for layer, constant in constants.items()
    ]


def project_writers(loaded: LoadedModel, span: Tensor, share: float = 1.0) -> list[Any]:
    """Hooks that remove a subspace, or a share of it, from the embedding and from all that blocks add."""
    model, family = loaded.model, loaded.family

    def remove(y: Tensor) -> Tensor:
        q = span.to(y.device)
        return (y.float() - share * ((y.float() @ q) @ q.T)).to(y.dtype)

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_stream(args, kwargs, remove(stream_of(args, kwargs)))

    def on_output(_module: nn.Module, _inputs: object, output: Any) -> Any:
        return map_first(output, remove)

    first = module_at(model, family.block_path(0))
    handles = [first.register_forward_pre_hook(on_input, with_kwargs=True)]
    handles += [
        module_at(model, path).register_forward_hook(on_output) for path in family.writers(loaded.n_layers)
    ]
    return handles
