"""What a model loses when an activation is replaced by an SAE's reconstruction."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.evaluation.reconstruction import ratio_interval
from microscope.models import LoadedModel, Tap, is_out_of_memory, module_at, runner_for
from microscope.models.activation import activation_in, with_activation
from microscope.models.runner import run_blocks
from microscope.models.stream import stream_of, with_stream
from microscope.params import Site
from microscope.progress import Progress
from microscope.sae import SparseAutoencoder

Replacement = Literal["sae", "zero"]
Act = Callable[[Tensor], Tensor | None]

# Nats per token below which two runs of a model are the same.
_ROUNDING = 1e-9


class LossRecovered(msgspec.Struct, kw_only=True, frozen=True):
    """Cross-entropies (nats per token) and shares recovered.

    ``ce_recovered = (ce_zero − ce_sae)/(ce_zero − ce_model)`` and ``kl_recovered = 1 − KL(model‖sae)/
    KL(model‖zero)``; with the token filter, filtered tokens (attention sinks, special tokens) keep
    their own activation, in the splice as in the zero ablation. A share is None where zero ablation does no
    harm that could be recovered: it changes nothing, or lowers the loss.
    """

    contexts: int
    predictions: int
    ce_model: float
    ce_sae: float
    ce_zero: float
    ce_recovered: float | None
    ce_recovered_interval: tuple[float, float] | None
    kl_sae: float
    kl_zero: float
    kl_recovered: float | None


class Window(msgspec.Struct, kw_only=True, frozen=True):
    """One held-out context: token ids, which of them are special, and its document."""

    tokens: np.ndarray
    special: np.ndarray
    doc: int


class Splicer(ABC):
    """Runs a model with the activation at an SAE's site as it is, reconstructed, or zero."""

    def __init__(self, loaded: LoadedModel, sae: SparseAutoencoder) -> None:
        self.loaded, self.sae = loaded, sae

    @abstractmethod
    def start(self, tokens: Tensor, special: Tensor) -> Tensor:
        """Read a context ``[positions]``; returns the untouched model's log-probabilities ``[positions, vocabulary]``."""

    @abstractmethod
    def replaced(self, by: Replacement, *, filtered: bool) -> Tensor:
        """Log-probabilities with the site replaced, ``filtered`` tokens keeping their own activation or not."""

    def _keep(self, x: Tensor, special: Tensor, *, filtered: bool) -> Tensor:
        """True for rows to be replaced, by the token filter of the SAE and its inputs ``[positions, d_in]``."""
        if not filtered:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.sae.config.token_filter.keep(special.to(x.device), x.float().norm(dim=1))


class ResidualSplicer(Splicer):
    """An SAE on a block's output: only the blocks above are run again."""

    def __init__(self, loaded: LoadedModel, sae: SparseAutoencoder, layer: int) -> None:
        super().__init__(loaded, sae)
        self._runner, self._layer = runner_for(loaded), layer

    def start(self, tokens: Tensor, special: Tensor) -> Tensor:
        self._rows = self._runner.rows(tokens[None])
        self._x = run_blocks(self._runner, self._runner.embed(self._rows), self._rows, 0, self._layer + 1)
        self._special = special
        return self._finish(self._x)

    def replaced(self, by: Replacement, *, filtered: bool) -> Tensor:
        keep = self._keep(self._x[0], self._special, filtered=filtered)
        x = self._x.clone()
        x[0, keep] = self.sae(x[0, keep]).to(x.dtype) if by == "sae" else 0
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        x = run_blocks(self._runner, x, self._rows, self._layer + 1, self._runner.n_layers)
        return self._runner.head(x)[0].float().log_softmax(-1)


class HookSplicer(Splicer):
    """Any other site, and transcoders: hooks on the model's own modules, read at one site, write at another."""

    def __init__(self, loaded: LoadedModel, sae: SparseAutoencoder, source: Site, target: Site) -> None:
        super().__init__(loaded, sae)
        self._source, self._target = loaded.family.tap(source), loaded.family.tap(target)

    def start(self, tokens: Tensor, special: Tensor) -> Tensor:
        self._tokens, self._special = tokens, special
        return self._run()

    def replaced(self, by: Replacement, *, filtered: bool) -> Tensor:
        read: list[Tensor] = []

        def change(own: Tensor) -> Tensor:
            x = read[0] if read else own[0]
            keep = self._keep(x, self._special, filtered=filtered)
            changed, rows = own.clone(), keep.to(own.device)
            changed[0, rows] = self.sae(x[keep]).to(own) if by == "sae" else 0
            return changed

        with contextlib.ExitStack() as stack:
            if self._source != self._target:
                stack.enter_context(
                    _tapped(self.loaded, self._source, len(self._tokens), lambda x: read.append(x[0].clone()))
                )
            stack.enter_context(_tapped(self.loaded, self._target, len(self._tokens), change))
            return self._run()

    def _run(self) -> Tensor:
        logits = self.loaded.model(self._tokens[None], use_cache=False).logits
        return logits[0].float().log_softmax(-1)


@contextlib.contextmanager
def _tapped(loaded: LoadedModel, tap: Tap, positions: int, act: Act) -> Iterator[None]:
    """Hand the activation ``[1, positions, width]`` at a site to ``act``, and put what it returns, if anything, in its place."""
    module, shape = module_at(loaded.model, tap.path), (1, positions)

    def on_input(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = stream_of(args, kwargs)
        changed = act(activation_in(held, tap, shape))
        return None if changed is None else with_stream(args, kwargs, with_activation(held, tap, changed))

    def on_output(_module: object, _inputs: object, output: Any) -> Any:
        changed = act(activation_in(output, tap, shape))
        return None if changed is None else with_activation(output, tap, changed)

    if tap.side == "input":
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def splicer_for(loaded: LoadedModel, sae: SparseAutoencoder) -> Splicer:
    """The cheapest way to splice this SAE, which moves to where the site is that it reads.

    Raises:
        MicroscopeError: ``no_such_site``.
    """
    source = Site.parse(sae.config.site)
    target = Site.parse(sae.config.site_out) if sae.config.site_out else source
    sae = sae.to(loaded.device_of(source))
    if source == target and source.kind == "resid_post" and not loaded.spread:
        with contextlib.suppress(MicroscopeError):  # no block of some models runs without the others
            return ResidualSplicer(loaded, sae, source.layer)
    return HookSplicer(loaded, sae, source, target)


@torch.inference_mode()
def loss_recovered(
    splicer: Splicer, windows: Sequence[Window], *, progress: Progress, bootstrap: int, seed: int
) -> tuple[LossRecovered, LossRecovered] | None:
    """Splice on whole contexts: with the token filter, and without; None when no window has two tokens."""
    usable = [w for w in windows if len(w.tokens) > 1]
    if not usable:
        return None
    device = splicer.loaded.device
    sums = np.zeros((2, len(usable), 6))
    with progress.phase("measuring loss", len(usable), "contexts"):
        for number, window in enumerate(usable):
            try:
                _measure(splicer, window, device, sums[:, number])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise MicroscopeError(
                    "out_of_memory",
                    f"A context of {len(window.tokens)} tokens does not fit in memory on {device}.",
                    "Use --device cpu, or leave the loss out with --loss-contexts 0; contexts are run one by one.",
                ) from error
            progress.advance(number + 1)
        progress.advance(len(usable), final=True)
    docs = [w.doc for w in usable]
    with_filter, without = (recovered_from(rows, docs, bootstrap=bootstrap, seed=seed) for rows in sums)
    return with_filter, without


def _measure(splicer: Splicer, window: Window, device: torch.device, rows: np.ndarray) -> None:
    """Fill a context's sums ``[2, 6]``, filtered and not."""
    tokens = torch.from_numpy(window.tokens.astype(np.int64)).to(device)
    reference = splicer.start(tokens, torch.from_numpy(window.special).to(device))
    for row, filtered in zip(rows, (True, False), strict=True):
        row[0], row[1] = len(tokens) - 1, _cross_entropy(reference, tokens)
        replacements: tuple[Replacement, Replacement] = ("sae", "zero")
        for column, by in enumerate(replacements, 2):
            other = splicer.replaced(by, filtered=filtered)
            row[column] = _cross_entropy(other, tokens)
            row[column + 2] = float(F.kl_div(other[:-1], reference[:-1], reduction="sum", log_target=True))


def recovered_from(rows: np.ndarray, docs: list[int], *, bootstrap: int, seed: int) -> LossRecovered:
    """The losses of all contexts together.

    Args:
        rows: ``[contexts, 6]``: the number of predictions, and in nats the losses of the model, with the SAE and with
            zeros, and the divergences with the SAE and with zeros; all of them sums over the context.
        docs: of every context, the document it is from; intervals draw documents.
    """
    n, model, spliced, zero, kl_sae, kl_zero = rows.sum(0).tolist()
    documents, of_document = np.unique(docs, return_inverse=True)
    top, bottom = (np.bincount(of_document, rows[:, 3] - rows[:, i], len(documents)) for i in (2, 1))
    # where zeroing helps, the formula's denominator is negative and any SAE would read well
    something = zero - model > _ROUNDING * n
    return LossRecovered(
        contexts=len(rows),
        predictions=int(n),
        ce_model=model / n,
        ce_sae=spliced / n,
        ce_zero=zero / n,
        ce_recovered=(zero - spliced) / (zero - model) if something else None,
        ce_recovered_interval=ratio_interval(top, bottom, bootstrap, seed) if something else None,
        kl_sae=kl_sae / n,
        kl_zero=kl_zero / n,
        kl_recovered=1 - kl_sae / kl_zero if abs(kl_zero) > _ROUNDING * n else None,
    )


def _cross_entropy(log_probabilities: Tensor, tokens: Tensor) -> float:
    return float(-log_probabilities[:-1].gather(1, tokens[1:, None]).double().sum())
