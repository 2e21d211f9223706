"""Tiny models, a small corpus, a recording and an SAE, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from microscope.activations import Recording, record
from microscope.models import LoadedModel, load_model
from microscope.params import TraceParams, TrainParams
from microscope.sae import SparseAutoencoder
from microscope.training import train
from tests.tiny_models import ENCODERS, KINDS, make_corpus, make_model
from workbench.demo.assets import fetch

LAYER = 2


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_model(kind, root / kind) for kind in (*KINDS, *ENCODERS)}


@pytest.fixture(scope="session", params=KINDS)
def tiny(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> LoadedModel:
    """One tiny model per architecture, in float32."""
    return load_model(str(model_folders[request.param]), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def llama(model_folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(model_folders["llama"]), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as GGUF, as ``make demo`` has it; fetched when it is not there yet."""
    return fetch(Path(__file__).parents[1] / "var")[0]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="session")
def recording_folder(
    tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path], corpus: Path
) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "acts"
    record(
        TraceParams(
            model=str(model_folders["llama"]),
            out=str(folder),
            layers=(1, LAYER),
            text=(str(corpus),),
            tokens=4000,
            context_length=32,
            batch_tokens=256,
            held_out=0.2,
            dtype="float32",
            device="cpu",
        )
    )
    return folder


@pytest.fixture(scope="session")
def recording(recording_folder: Path) -> Recording:
    return Recording(recording_folder)


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory: pytest.TempPathFactory, recording_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("sae") / "sae"
    train(
        TrainParams(
            activations=str(recording_folder),
            out=str(folder),
            layer=LAYER,
            width=96,
            k=8,
            tokens=20_000,
            batch_size=200,
            device="cpu",
        )
    )
    return folder


@pytest.fixture(scope="session")
def sae(sae_folder: Path) -> SparseAutoencoder:
    from microscope.sae import load_sae

    return load_sae(sae_folder)
