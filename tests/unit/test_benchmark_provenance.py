"""The benchmark of provenance on a tiny model: what it draws, what it measures, which goals it prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import provenance
from microscope.models import LoadedModel, load_model, runner_for
from microscope.params import Site
from microscope.provenance import Limits
from microscope.sae import SparseAutoencoder
from tests.live_rig import random_sae
from tests.tiny_models import make_model

TOKENS, CONTEXTS = 12, 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = make_model("llama", tmp_path_factory.mktemp("benchmark"))
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def saes(loaded: LoadedModel) -> dict[str, SparseAutoencoder]:
    found = [random_sae(loaded.d_model, layer, layer) for layer in (0, 1, 2)]
    return {sae.content_fingerprint(): sae for sae in found}


@pytest.fixture(scope="module")
def contexts() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 200, (CONTEXTS, 20)).astype(np.int32)


def test_targets_fire_at_half_of_their_maximum(loaded, saes, contexts) -> None:
    targets = provenance.draw(loaded, saes, contexts, 8, TOKENS)
    assert len({target.index for target in targets}) == 8
    [sae] = [s for s in saes.values() if Site.parse(s.config.site).layer == 2]
    with torch.no_grad():
        ids = torch.from_numpy(contexts[:, :TOKENS].astype(np.int64))
        streams: list[torch.Tensor] = []
        block = loaded.model.get_submodule(loaded.family.block_path(2))
        handle = block.register_forward_hook(lambda _m, _a, out: streams.append(out))
        loaded.model(ids, use_cache=False)
        handle.remove()
        values = torch.stack([sae.feature(streams[0].flatten(0, 1), t.index) for t in targets], 1)
    values = values.unflatten(0, (CONTEXTS, TOKENS))
    for number, target in enumerate(targets):
        [context] = [i for i, row in enumerate(contexts[:, :TOKENS].tolist()) if tuple(row) == target.tokens]
        assert target.position >= TOKENS // 4
        assert values[context, target.position, number] >= 0.499 * values[..., number].max() > 0


def test_what_is_measured_is_printed_with_its_goals(loaded, saes, contexts) -> None:
    runner = runner_for(loaded)
    targets = provenance.draw(loaded, saes, contexts, 2, TOKENS)
    found = provenance.measure(loaded, saes, targets, runner, Limits(shown=6, parents=2))
    assert len(found.depths) == len(found.first) == len(found.whole) == 2
    assert all(first < whole for first, whole in zip(found.first, found.whole, strict=True))
    assert max(abs(c - 1) for c in found.completeness) < 1e-3
    assert len(found.predicted) == len(found.measured) > 4
    assert 0 < len(found.accepted) <= 2 * 6
    exact = provenance.reference(loaded, saes, targets, runner)
    assert set(exact) == {"gates", "gradient"}
    assert all(0 <= recall <= 1 for _, recalls in exact.values() for recall in recalls)
    assert exact["gates"][0] != exact["gradient"][0]
    off, agrees = provenance.attention(loaded, saes, contexts, 3)
    assert len(agrees) == 3
    assert len(off) >= 6
    assert max(off) < 1e-4
    lines = "\n".join(provenance.goals(found, (off, agrees), {TOKENS: {"gb": 5.0, "first": 1.0}}))
    assert "goal **missed**: GB at 12 tokens 5 (≤ 4)" in lines
    assert lines.count("goal") == 9
