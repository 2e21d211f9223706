"""Run a model just far enough to read activations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from microscope.models.activation import activation_in
from microscope.models.families import Tap, module_at
from microscope.models.stream import stream_of
from microscope.params import Site
from microscope.threads import Handle, start_in_pieces

if TYPE_CHECKING:
    from microscope.models import LoadedModel

_FLOAT16_MAX = float(torch.finfo(torch.float16).max)


class SiteRows(NamedTuple):
    """Consecutive rows of one site: ``[rows, width]`` float16, their float32 norms, and which overflowed.

    Rows that do not fit float16 are zeros; their norm is still the true one, and infinite for those
    with an entry that is infinite or no number.
    """

    values: np.ndarray
    norm: np.ndarray
    overflow: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[SiteRows]) -> SiteRows:
        """Several runs of rows as one."""
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


# Per site, the rows of each window.
SitesRows = dict[str, list[SiteRows]]


class _Reached(Exception):
    """The highest site has been read: nothing above it is computed."""


class SiteReader:
    """Reads sites of a plain Hugging Face model through hooks on its own modules.

    The forward pass ends as soon as the last requested activation exists. Use as a context manager;
    hooks are gone afterwards.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[Site]) -> None:
        self._loaded, self._sites = loaded, list(sites)
        self._here = threading.local()  # what the pass of this thread has caught
        self._handles: list[Any] = []

    def __enter__(self) -> SiteReader:
        # A block's output comes after everything inside the block, so the deepest site is the last one caught.
        for site in self._sites:
            tap = self._loaded.family.tap(site)
            module = module_at(self._loaded.model, tap.path)
            if tap.side == "input":
                hook = module.register_forward_pre_hook(self._input_hook(str(site), tap), with_kwargs=True)
            else:
                hook = module.register_forward_hook(self._output_hook(str(site), tap))
            self._handles.append(hook)
        self._keeps_state = _keeps_state(self._loaded.model)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def read(self, tokens: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Activations ``[batch, positions, width]`` of every site for token ids ``[batch, positions]``.

        Shorter sequences are padded on the right; ``real`` ``[batch, positions]`` marks what is no
        padding. With causal attention what follows a token does not reach it, so no mask is handed to
        the model; an encoder gets one.
        """
        loaded = self._loaded
        options: dict[str, Any] = {"use_cache": False}
        if not loaded.family.causal:
            options = {"attention_mask": real.long().to(loaded.device)}
        caught: dict[str, Tensor] = {}
        self._here.caught, self._here.shape = caught, tokens.shape
        with contextlib.suppress(_Reached):
            loaded.model.base_model(tokens.to(loaded.device, non_blocking=True), **options)
        return caught

    def read_windows(self, windows: Sequence[np.ndarray]) -> SitesRows:
        """Rows of every site for a batch of token windows, ready to be stored: per site, one per window."""
        return joined(self.start_windows(windows).results())

    def start_windows(self, windows: Sequence[np.ndarray]) -> Handle[SitesRows]:
        """As :meth:`read_windows` without waiting: the rows of the first windows, of the next and so on.

        On a CPU each thread runs windows of its own through the whole model. Threads that divide every
        operation among them wait for each other after each of hundreds, most of all on a busy machine. A model
        whose modules keep a state of the pass in themselves runs one pass at a time.
        """

        def some(first: int, last: int) -> SitesRows:
            part = windows[first:last]
            caught = self.read(*pad(part))
            return {name: stored_rows(values, [len(w) for w in part]) for name, values in caught.items()}

        loaded, count = self._loaded, len(windows)
        divided = loaded.device.type == "cpu" and not loaded.spread and loaded.quantisation is None
        divided = divided and not self._keeps_state
        return start_in_pieces(some, count, -(-count // torch.get_num_threads()) if divided else count)

    def _catch(self, name: str, held: Any, tap: Tap) -> None:
        caught: dict[str, Tensor] = self._here.caught
        value = activation_in(held, tap, self._here.shape)
        # a block may add to it in place
        caught[name] = value.clone() if self._loaded.family.found else value
        if len(caught) == len(self._sites):
            raise _Reached

    def _output_hook(self, name: str, tap: Tap) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._catch(name, output, tap)

        return hook

    def _input_hook(self, name: str, tap: Tap) -> Any:
        def hook(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._catch(name, stream_of(args, kwargs), tap)

        return hook


def _keeps_state(model: torch.nn.Module) -> bool:
    """Whether modules hold tensors that are neither weights nor buffers: what the last pass has left in them."""
    return any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())


def joined(parts: Sequence[SitesRows]) -> SitesRows:
    """The rows of consecutive windows together."""
    return {name: [rows for part in parts for rows in part[name]] for name in parts[0]}


def stored_rows(values: Tensor, lengths: Sequence[int]) -> list[SiteRows]:
    """``[batch, positions, width]`` in the model's arithmetic as float16 rows of each sequence."""
    exact = values.float()
    norm = exact.norm(dim=-1)
    overflow = torch.zeros_like(norm, dtype=torch.bool)
    if not bool((norm <= _FLOAT16_MAX).all()):  # a row shorter than that has no larger entry
        overflow = ~(exact.abs().amax(-1) <= _FLOAT16_MAX)
        exact = exact.masked_fill(overflow[..., None], 0)
        norm = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
    columns = [t.cpu().numpy() for t in (exact.half(), norm, overflow)]
    return [SiteRows._make(c[row, :length] for c in columns) for row, length in enumerate(lengths)]


def batches_of(windows: Sequence[np.ndarray], batch_tokens: int) -> list[list[int]]:
    """Group windows of similar length so that a padded batch holds at most ``batch_tokens`` tokens."""
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * len(windows[groups[-1][0]]) <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pad(windows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Token ids ``[batch, longest]``, padded on the right with the last token, and which are real."""
    out = np.zeros((len(windows), max(map(len, windows))), dtype=np.int64)
    real = np.zeros(out.shape, dtype=bool)
    for row, mark, window in zip(out, real, windows, strict=True):
        row[: len(window)] = window
        row[len(window) :] = window[-1]
        mark[: len(window)] = True
    return torch.from_numpy(out), torch.from_numpy(real)
