"""Recordings that are continued with something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from microscope import ActivationRecorder
from microscope.activations import Recording, record
from microscope.activations.opening import SHAPING
from microscope.models import LoadedModel
from microscope.params import TraceParams
from tests.recordings import contents, interrupted, trace
from tests.refusals import refusal
from tests.tiny_models import make_corpus

OTHERS: dict[str, object] = {
    "tokens": 3000,
    "context_length": 16,
    "tokens_per_document": 32,
    "held_out": 0.3,
    "seed": 4,
    "outlier_factor": 9.0,
    "text_field": "body",
    "dtype": "bfloat16",
}
# They say where the recording goes and how it is computed; a smaller batch is the remedy for little memory.
FREE = {"out", "device", "batch_tokens", "processes", "memory_mb", "resume"}
# Compared as they turn out: weights, sites, precision, and the content of the text.
BY_CONTENT = {"model", "revision", "layers", "site", "dtype", "text"}


def test_every_parameter_is_checked_or_known_to_shape_no_row() -> None:
    assert set(TraceParams.__struct_fields__) == set(SHAPING) | FREE | BY_CONTENT


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("complete", [False, True])
def test_other_settings_are_named_and_nothing_is_touched(
    tmp_path: Path, model_folders: dict[str, Path], texts: Path, small_shards: None, name: str, complete: bool
) -> None:
    model = model_folders["llama"]
    if complete:
        record(trace(tmp_path / "r", model, texts))
    else:
        interrupted(tmp_path / "r", model, texts, None)
    before = contents(tmp_path / "r")
    changed = trace(tmp_path / "r", model, texts, resume=True, **{name: OTHERS[name]})
    if complete and name == "tokens":
        record(changed)  # says that there is nothing left to do
    else:
        error = refusal(lambda: record(changed))
        assert error.code == "recording_mismatch"
        assert f"{name} was " in error.message
        assert str(OTHERS[name]) in error.message
        assert "--out" in error.hint
    assert contents(tmp_path / "r") == before


@pytest.mark.parametrize("complete", [False, True])
def test_another_text_is_seen_by_its_content(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None, complete: bool
) -> None:
    mine = shutil.copytree(texts, tmp_path / "few")
    if complete:
        record(trace(tmp_path / "r", "tiny", mine), loaded=llama)
    else:
        interrupted(tmp_path / "r", "tiny", mine, llama)
    before = contents(tmp_path / "r")
    other = make_corpus(tmp_path / "other", documents=60, words=40, seed=9)
    error = refusal(lambda: record(trace(tmp_path / "r", "tiny", other, resume=True), loaded=llama))
    assert error.code == "recording_mismatch"
    assert "few" in error.message
    assert "other" in error.message
    for file in mine.iterdir():  # the same name, and other words
        file.write_text("peace " + file.read_text())
    error = refusal(lambda: record(trace(tmp_path / "r", "tiny", mine, resume=True), loaded=llama))
    assert error.code == "recording_mismatch"
    assert contents(tmp_path / "r") == before
    # A copy elsewhere is the same text.
    moved = shutil.copytree(texts, tmp_path / "moved")
    record(trace(tmp_path / "r", "tiny", moved, resume=True), loaded=llama)


def test_a_smaller_batch_may_continue(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    interrupted(tmp_path / "r", "tiny", texts, llama)
    record(trace(tmp_path / "r", "tiny", texts, resume=True, batch_tokens=32, memory_mb=400), loaded=llama)
    assert Recording(tmp_path / "r").manifest.corpus.documents > 30


def test_nothing_of_others_in_the_folder_is_touched(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    for name in ("notes.parquet", "train.parquet", "train-00000-of-00001.parquet", "statistics.csv"):
        (folder / name).write_bytes(b"mine")
    interrupted(folder, "tiny", texts, llama)
    record(trace(folder, "tiny", texts, resume=True), loaded=llama)
    ActivationRecorder(**_recorder(folder)).record(text=str(texts), overwrite=True)
    for name in ("notes.parquet", "train.parquet", "train-00000-of-00001.parquet", "statistics.csv"):
        assert (folder / name).read_bytes() == b"mine"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train-00000.parquet").write_bytes(b"theirs")
    for call in (
        lambda: record(trace(tmp_path / "theirs", "tiny", texts), loaded=llama),
        lambda: ActivationRecorder(**_recorder(tmp_path / "theirs")).record(text=str(texts), overwrite=True),
    ):
        assert refusal(call).code == "recording_exists"
    assert [(f.name, f.read_bytes()) for f in (tmp_path / "theirs").iterdir()] == [
        ("train-00000.parquet", b"theirs")
    ]


MODEL: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def _model(model_folders: dict[str, Path]) -> None:
    MODEL.update(model_folders)


def _recorder(folder: Path) -> dict[str, object]:
    return {
        "model_name": str(MODEL["llama"]), "layer_idx": 1, "output_path": str(folder), "max_samples": 600,
        "context_length": 32, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
