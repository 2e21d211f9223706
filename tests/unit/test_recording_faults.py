"""Recordings of few documents, full of NaN, or with nowhere to go."""

from __future__ import annotations

import copy
import dataclasses
import resource
import shutil
import signal
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from tokenizers import processors

from microscope.activations import Recording, read_manifest, record
from microscope.activations import writer as writing
from microscope.activations.manifest import OVERFLOW, STATISTICS, write_manifest
from microscope.cli import main
from microscope.models import LoadedModel, load_model
from microscope.progress import Progress
from tests.recordings import contents, killed, trace
from tests.refusals import refusal
from tests.tiny_models import make_corpus

# --- few documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [2, 5, 25, 60])
@pytest.mark.parametrize("tokens", [150, 1000])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_a_recording_has_both_sides_however_few_its_documents(
    tmp_path: Path, llama: LoadedModel, documents: int, tokens: int, share: float
) -> None:
    for seed in range(3):
        text = make_corpus(tmp_path / f"t{seed}", documents=documents, words=40, seed=seed)
        out = tmp_path / f"r{seed}"
        manifest = record(trace(out, "tiny", text, tokens=tokens, held_out=share), loaded=llama)
        assert manifest.train.rows
        assert manifest.held_out.rows
        assert manifest.train.rows + manifest.held_out.rows <= tokens
        # None of the text is on both sides.
        sides = [
            {tuple(pq.read_table(out / s.file)["doc"].to_pylist()) for s in split.shards}
            for split in (manifest.train, manifest.held_out)
        ]
        assert not set().union(*map(set, sides[0])) & set().union(*map(set, sides[1]))


def test_one_document_that_takes_all_tokens_is_refused_before_the_work(
    tmp_path: Path, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make_corpus(tmp_path / "t", documents=25, words=400)

    def runs(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("microscope.activations.forward.SiteReader.start_windows", runs)
    error = refusal(lambda: record(trace(tmp_path / "r", "tiny", text, tokens=300), loaded=llama))
    assert error.code == "corpus_too_small"
    assert "--tokens-per-document" in error.hint
    monkeypatch.undo()
    record(trace(tmp_path / "r", "tiny", text, tokens=300, tokens_per_document=64), loaded=llama)


def test_a_text_with_its_own_bos_gets_no_second_one(tmp_path: Path, llama: LoadedModel, texts: Path) -> None:
    tokenizer, bos = copy.deepcopy(llama.tokenizer), llama.tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    loaded = dataclasses.replace(llama, tokenizer=tokenizer)
    assert loaded.wrapping == ((tokenizer.bos_token_id,), ())
    own = tmp_path / "own"
    own.mkdir()
    for file in texts.iterdir():
        (own / file.name).write_text(bos + file.read_text())
    for folder in (texts, own):
        record(trace(tmp_path / f"r-{folder.name}", "tiny", folder), loaded=loaded)
    windows = [
        {tuple(w.token) for c in r.chunks("train", r.manifest.sites[0]) for w in c.windows()}
        for r in (Recording(tmp_path / f"r-{folder.name}") for folder in (texts, own))
    ]
    for window in (*windows[0], *windows[1]):
        assert window.count(loaded.wrapping[0][0]) == 1
        assert window[0] == loaded.wrapping[0][0]
    assert windows[0] & windows[1]  # the documents come in another order, as their texts are others


# --- rows that are no numbers ---------------------------------------------------------------------------


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def log(self, message: str, level: str = "info") -> None:
        if level == "warning":
            self.said.append(message)


def broken_model(folder: Path, source: Path, tokens: list[int], value: float) -> LoadedModel:
    """A model some of whose tokens have an embedding of no numbers."""
    loaded = load_model(str(source), dtype="float32", device="cpu")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[tokens] = value
    return loaded


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_named_left_out_and_counted(
    tmp_path: Path, model_folders: dict[str, Path], texts: Path, value: float, small_shards: None
) -> None:
    table = record(trace(tmp_path / "sound", model_folders["llama"], texts))
    counts = np.bincount(
        np.concatenate([c.token for c in Recording(tmp_path / "sound").chunks("train", table.sites[0])])
    )
    rare = int(np.flatnonzero(counts == counts[counts > 0].min())[0])
    loaded = broken_model(tmp_path, model_folders["llama"], [rare], value)
    heard = Heard()
    manifest = record(trace(tmp_path / "r", "tiny", texts), heard, loaded=loaded)
    [site] = manifest.sites
    name = loaded.tokenizer.convert_ids_to_tokens(rare)
    assert site.nonfinite > 0
    assert heard.said[0].endswith(f"embed_tokens.weight at token {name!r}.")
    assert "resid_post.1 has rows that are infinite or no numbers, first in document" in heard.said[1]
    assert f"{site.nonfinite} of 2000 rows of resid_post.1" in heard.said[-1]
    recording = Recording(tmp_path / "r")
    seen = left_out = 0
    for split in ("train", "held_out"):
        for chunk in recording.chunks(split, site):
            bad = ~np.isfinite(chunk.norm)
            assert (chunk.flags[bad] & OVERFLOW).all()
            assert not recording.keep_mask(site, chunk.flags, chunk.norm)[bad].any()
            assert np.isfinite(chunk.values).all()
            seen += int(bad.sum())
            left_out += int((chunk.token == rare).sum())
    assert seen == site.nonfinite >= left_out > 0
    assert np.isfinite([site.rms_norm, site.gamma, site.median_norm, site.outlier_norm]).all()
    for values in load_file(tmp_path / "r" / STATISTICS).values():
        assert np.isfinite(values).all()
    from microscope.training import train_sae

    sae = train_sae(
        str(tmp_path / "r"), str(tmp_path / "sae"), 1, latent_dim=32, k=4, tokens=2000, batch_size=200
    )
    assert torch.isfinite(sae.W_dec).all()


def test_a_broken_model_is_refused(tmp_path: Path, model_folders: dict[str, Path], texts: Path) -> None:
    everything = broken_model(tmp_path, model_folders["llama"], list(range(256)), float("nan"))
    error = refusal(lambda: record(trace(tmp_path / "r", "tiny", texts), loaded=everything))
    assert (error.code, "resid_post.1" in error.message) == ("not_finite", True)
    beginnings = broken_model(tmp_path, model_folders["llama"], list(range(0, 256, 6)), float("nan"))
    error = refusal(lambda: record(trace(tmp_path / "r", "tiny", texts), loaded=beginnings))
    assert error.code == "not_finite"
    assert "of 2000 rows" in error.message
    assert not read_manifest(tmp_path / "r").complete


# --- nowhere to go --------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/sys/kernel/x", "x" * 300, "a\0b", "link"])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, texts: Path, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    error = refusal(lambda: record(trace(tmp_path / out, "no such model", texts)))
    assert error.code == "bad_output"
    assert error.hint
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said_and_leaves_what_was_there(
    tmp_path: Path, model_folders: dict[str, Path], texts: Path, small_shards: None
) -> None:
    """Files of at most so many bytes stand for the disk; the kernel refuses the rest of a write."""
    params = trace(tmp_path / "r", model_folders["llama"], texts)
    record(msgspec.structs.replace(params, out=str(tmp_path / "whole")))
    largest = max(f.stat().st_size for f in (tmp_path / "whole").glob("*.parquet"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1000, before[1]))
        error = refusal(lambda: record(params))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.code == "disk_full"
    assert str(tmp_path / "r") in error.message
    assert "--resume" in error.hint
    assert not list((tmp_path / "r").glob("*.tmp"))
    record(msgspec.structs.replace(params, resume=True))
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


@pytest.mark.parametrize("target", ["manifest", "statistics"])
def test_no_room_for_the_last_bytes(
    tmp_path: Path,
    llama: LoadedModel,
    texts: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    name = {"manifest": "microscope.activations.manifest", "statistics": "microscope.activations.writer"}[
        target
    ]
    real, left = writing.write_durably, [3]

    def full(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(f"{name}.write_durably", full)
    params = trace(tmp_path / "r", "tiny", texts)
    assert refusal(lambda: record(params, loaded=llama)).code == "disk_full"
    monkeypatch.setattr(f"{name}.write_durably", real)
    record(msgspec.structs.replace(params, resume=True), loaded=llama)
    record(msgspec.structs.replace(params, out=str(tmp_path / "whole")), loaded=llama)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_first_attempt_that_wrote_nothing_needs_no_resume(
    tmp_path: Path, llama: LoadedModel, texts: Path
) -> None:
    params = trace(tmp_path / "r", "tiny", texts)
    assert killed(params, llama, 12)
    record(msgspec.structs.replace(params, context_length=16), loaded=llama)
    assert Recording(tmp_path / "r").manifest.context_length == 16


def test_the_command_line_says_all_of_it_in_words(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = CliRunner().invoke(
        main,
        ["trace", "--model", "x", "--layers", "1", "--text", str(texts), "--out", str(tmp_path / "file")],
    )
    assert said.exit_code == 3
    assert "bad_output" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_manifest_survives_a_failure_to_replace_it(
    tmp_path: Path, recording_folder: Path, monkeypatch
) -> None:
    copy = shutil.copytree(recording_folder, tmp_path / "r")
    manifest = read_manifest(copy)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("microscope.outputs.os.replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_manifest(copy, manifest)
    assert Recording(copy).manifest == manifest
    assert sorted(f.name for f in copy.iterdir()) == sorted(f.name for f in recording_folder.iterdir())
