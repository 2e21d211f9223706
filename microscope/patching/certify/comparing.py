"""The models of a certificate run side by side, batch by batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from microscope.models import LoadedModel, module_at
from microscope.params import Edit, Site, kind_of
from microscope.patching.apply import Saes, feature_values
from microscope.patching.certify.measure import Mean, Rows, compare, share_kept
from microscope.patching.certify.reload import Reloaded
from microscope.patching.export.manifest import ExportManifest
from microscope.patching.fitting.least_squares import batched, padded, prompts_of
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel

BATCH = 4
_NULL_BATCHES = 2


class FeatureEffect(msgspec.Struct, kw_only=True, frozen=True):
    """Mean activation of an edited feature where the patch acts, read behind the edit."""

    site: str
    feature: int
    base: float
    patched: float
    export: float


class Effect(msgspec.Struct, kw_only=True, frozen=True):
    """What the patch does where it acts, and how much of it the export does.

    ``share`` is ``1 − Σ KL(patch ‖ export) / Σ KL(patch ‖ base)`` with its interval over contexts, and
    ``share_of_half`` the same against the patch at half strength; ``recovered`` is the value of ``share``
    under its older name. ``positions`` and ``contexts`` say how many of them the patch acts in, ``prompts``
    in how many of the prompts given.
    """

    kl_patch_base: float | None
    recovered: float | None
    features: tuple[FeatureEffect, ...]
    share: Mean | None = None
    share_of_half: Mean | None = None
    positions: int = 0
    contexts: int = 0
    prompts: int = 0


class Comparison:
    """Gathers rows batch by batch."""

    def __init__(
        self,
        loaded: LoadedModel,
        patched: PatchedModel,
        half: PatchedModel,
        reloaded: Reloaded,
        saes: Saes,
        manifest: ExportManifest,
    ) -> None:
        self._loaded, self._patched, self._half, self._reloaded = loaded, patched, half, reloaded
        # Text as it comes; and, of every context in which an edit fires, what follows from there on.
        self.clean, self.behind = Rows(), Rows()
        self.documents: set[int] = set()
        self.prompts = self.done = 0
        self.features = _FeatureReader(loaded, saes, manifest)

    @torch.no_grad()
    def measure(self, batch: Sequence[TextWindow], *, plain: bool) -> None:
        """Compare the three models on a batch of contexts."""
        tokens, real = padded(batch)
        prompts = prompts_of(batch)
        watch = self.features.watch
        with watch("base", self._loaded.model):
            base = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
        # The patch's own hooks come after the watching ones: what they add is added here.
        with watch("patched", self._loaded.model):
            wanted, fired = self._patched(tokens, self.features.shift, prompts)
        half, _ = self._half(tokens, prompts=prompts)
        export = self._reloaded.logits(tokens, watch("export", self._reloaded.model), prompts)
        self.features.add((fired & real).to(base.device))
        for row, window in enumerate(batch):
            n = len(window.tokens)
            columns = compare(base[row, :n], wanted[row, :n], half[row, :n], export[row, :n], tokens[row, :n])
            where = fired[row, :n]
            if plain:
                self.clean.add(window.doc, columns)
            if window.doc >= 0:
                self.documents.add(window.doc)
            if bool(where.any()):
                self.prompts += window.doc < 0
                first = int(where.nonzero()[0])
                columns["fires"] = where
                if window.doc < 0:  # of a prompt the next token is what it is about
                    columns["fires"] = where.clone()
                    columns["fires"][-1] = True
                self.behind.add(window.doc, {name: c[first:] for name, c in columns.items()})
        self.done += len(batch)

    def effect(self, acting: Rows, bootstrap: int, seed: int) -> Effect:
        """What the patch does at the positions ``acting``, and what of it the export does."""
        share = share_kept(acting, "kl_patch_base", bootstrap, seed)
        return Effect(
            kl_patch_base=float(acting.column("kl_patch_base").mean()) if len(acting) else None,
            recovered=None if share is None else share.value,
            features=self.features.result(),
            share=share,
            share_of_half=share_kept(acting, "kl_patch_half", bootstrap, seed),
            positions=len(acting),
            contexts=acting.contexts,
            prompts=self.prompts,
        )

    @torch.no_grad()
    def null(self, windows: Sequence[TextWindow]) -> bool | None:
        """Whether the export, switched off, is the untouched model bit for bit."""
        same = True
        for batch in itertools.islice(batched(windows, BATCH), _NULL_BATCHES):
            tokens, _ = padded(batch)
            off = self._reloaded.logits_off(tokens)
            if off is None:
                return None
            base = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
            same &= torch.equal(off, base)
        return same

    @torch.no_grad()
    def merged(self, windows: Sequence[TextWindow]) -> float | None:
        """Largest difference of logits between merged and unmerged; the export stays merged."""
        if self._reloaded.merge is None:
            return None
        batches = [padded(b)[0] for b in itertools.islice(batched(windows, BATCH), _NULL_BATCHES)]
        before = [self._reloaded.logits(tokens) for tokens in batches]
        self._reloaded.merge()
        after = [self._reloaded.logits(tokens) for tokens in batches]
        return max(float((x - y).abs().max()) for x, y in zip(before, after, strict=True))


class _FeatureReader:
    """Reads the edited features behind their edits in all three models."""

    def __init__(self, loaded: LoadedModel, saes: Saes, manifest: ExportManifest) -> None:
        measured = (edit for edit in manifest.plan.active() if kind_of(edit).measured)
        chosen = {(edit.site, edit.sae_needed, edit.index): edit for edit in measured}
        self._edits: list[Edit] = list(chosen.values())
        self._layers = {Site.parse(edit.site).layer for edit in self._edits}
        self._blocks, self._saes = loaded.family.blocks, saes
        self._streams: dict[str, dict[int, Tensor]] = {"base": {}, "patched": {}, "export": {}}
        self._sums = np.zeros((len(self._edits), 3))
        self._rows = 0

    @contextlib.contextmanager
    def watch(self, name: str, model: Any) -> Iterator[None]:
        """Catch a model's block outputs, as they are behind the hooks set before, while the context is open."""

        def catch(layer: int) -> Any:
            def hook(_module: object, _inputs: object, output: Any) -> None:
                self._streams[name][layer] = (output[0] if isinstance(output, tuple) else output).float()

            return hook

        handles = [
            module_at(model, f"{self._blocks}.{layer}").register_forward_hook(catch(layer))
            for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def shift(self, layer: int, delta: Tensor) -> None:
        """Add to the patched stream of a block ``[batch, positions, d]``."""
        if layer in self._layers:
            self._streams["patched"][layer] = self._streams["patched"][layer] + delta

    def add(self, where: Tensor) -> None:
        """Sum activations over the positions where the patch acts."""
        count = int(where.sum())
        if not count:
            return
        self._rows += count
        for number, edit in enumerate(self._edits):
            sae, layer = self._saes[edit.sae_needed], Site.parse(edit.site).layer
            for place, name in enumerate(("base", "patched", "export")):
                codes = sae.encode(self._streams[name][layer][where])
                self._sums[number, place] += float(feature_values(codes, edit.index).double().sum())

    def result(self) -> tuple[FeatureEffect, ...]:
        """Means per feature."""
        means = self._sums / max(self._rows, 1)
        return tuple(
            FeatureEffect(site=e.site, feature=e.index, base=b, patched=p, export=x)
            for e, (b, p, x) in zip(self._edits, means.tolist(), strict=True)
        )
