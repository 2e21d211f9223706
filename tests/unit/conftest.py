"""Tiny models, a small corpus, a recording and an SAE, made once per session."""

from pathlib import Path

import pytest

from tests.engine_fixtures import *  # noqa: F403 (fixtures)
from tests.patch_lab import Lab
from tests.tiny_models import make_corpus


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("texts") / "few", documents=60, words=40)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope.activations.recorder.SHARD_ROWS", 300)


@pytest.fixture
def lab(tmp_path, model_folders, sae) -> Lab:
    """The llama with the SAE that was trained on its recording."""
    return Lab(tmp_path, model_folders["llama"], sae)
