"""A toggle answered by our resident model."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.child import Turn, repeated
from microscope.live import ResidentModel
from microscope.models import load_model, runner_for
from microscope.params import Edit, EditPlan, FeatureRef, Positions
from microscope.sae import SaeConfig, SparseAutoencoder, architecture

LATENTS, K = 4096, 32
SESSION, FEATURE = "benchmark", 7


def stand_in(d: int, layer: int, kind: str = "topk") -> SparseAutoencoder:
    """A random autoencoder of usual size with tied unit rows: its quality changes no time."""
    config = SaeConfig(architecture=kind, d_in=d, n_latents=LATENTS, k=K, site=f"resid_post.{layer}")
    sae = architecture(kind)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, d, generator=generator), dim=1))
    sae.W_enc.copy_(sae.W_dec)
    return sae


def opened(
    model: str, text: str, dtype: Any, sae: SparseAutoencoder, *, composed: bool = True
) -> ResidentModel:
    """A resident model with the autoencoder attached and a session on the text.

    Without ``composed`` the model's own blocks run, also where there is a faster path.
    """
    loaded = load_model(model, dtype=dtype, device="cpu")
    resident = ResidentModel(loaded, runner=runner_for(loaded, fast=composed))
    resident.attached.saes[sae.content_fingerprint()] = sae
    resident.open(SESSION, text)
    return resident


def toggle(
    *,
    model: str,
    text: str,
    ids: list[int],
    dtype: str,
    layer: int,
    start: int,
    strength: float,
    times: int,
    composed: bool = True,
) -> Turn:
    """An ``add`` from one position on with a strength not seen before, to the next token's distribution."""
    resident, plan = _resident(model, text, ids, dtype, layer, composed=composed)
    strengths = itertools.count(1)
    where = Positions(mode="from", start=start, include_sinks=True)

    def work() -> None:
        applied = resident.apply(SESSION, plan(strength * (1 + next(strengths) / 1000), where))
        assert applied.reused == "computed"

    return repeated(work, times, 1)


def seen(
    *, model: str, text: str, ids: list[int], dtype: str, layer: int, strength: float, times: int
) -> Turn:
    """Back to a state seen before: a patch off and on again."""
    resident, plan = _resident(model, text, ids, dtype, layer)
    states = itertools.cycle((EditPlan(), plan(strength, Positions(include_sinks=True))))
    for _ in range(2):
        resident.apply(SESSION, next(states))

    def work() -> None:
        assert resident.apply(SESSION, next(states)).reused != "computed"

    return repeated(work, times, 1)


def _resident(
    model: str, text: str, ids: list[int], dtype: str, layer: int, *, composed: bool = True
) -> tuple[ResidentModel, _Edits]:
    width = AutoConfig.from_pretrained(model).hidden_size
    sae = stand_in(width, layer)
    resident = opened(model, text, dtype, sae, composed=composed)
    assert composed or resident.runner.path == "general"
    assert resident.sessions.get(SESSION).tokens.tolist() == ids, "all contestants run the same tokens"
    return resident, _Edits(sae)


class _Edits:
    """Plans of one edit. Who holds an autoencoder knows its fingerprint; making it reads all weights."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._feature = FeatureRef(sae=sae.content_fingerprint(), index=FEATURE)
        self._site = sae.config.site

    def __call__(self, strength: float, where: Positions) -> EditPlan:
        edit = Edit(kind="add", site=self._site, feature=self._feature, strength=strength, positions=where)
        return EditPlan(edits=(edit,))
