"""Recordings that are interrupted, continued with something else, full of NaN, or have nowhere to go."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from microscope import ActivationRecorder
from microscope.activations import Manifest, Recording, read_manifest, record
from microscope.activations import writer as writing
from microscope.activations.manifest import MANIFEST, OVERFLOW, STATISTICS, write_manifest
from microscope.activations.opening import SHAPING
from microscope.cli import main
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.params import TraceParams
from microscope.progress import Progress
from tests.tiny_models import make_corpus


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("texts") / "few", documents=60, words=40)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope.activations.recorder.SHARD_ROWS", 300)


def trace(folder: Path, model: Path | str, text: Path, **changes: object) -> TraceParams:
    base = {
        "model": str(model),
        "out": str(folder),
        "layers": (1,),
        "text": (str(text),),
        "tokens": 2000,
        "context_length": 32,
        "batch_tokens": 64,
        "held_out": 0.2,
        "dtype": "float32",
        "device": "cpu",
    }
    return TraceParams(**(base | changes))  # type: ignore[arg-type]


def refusal(call: Callable[[], object]) -> MicroscopeError:
    with pytest.raises(MicroscopeError) as caught:
        call()
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; of the manifest, all but how long it took."""
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    manifest = json.loads(found[MANIFEST])
    manifest.pop("seconds")
    return {**found, MANIFEST: json.dumps(manifest).encode()}


# --- killed at any write --------------------------------------------------------------------------------


class _Killer:
    """Ends this process, as ``kill -9`` does, at the n-th place where something is about to reach the disk.

    Places are each opening of a file for writing, renaming and deleting in the folder, each fsync, and
    the middle of each shard.
    """

    def __init__(self, folder: Path, at: int) -> None:
        self._folder, self._left = str(folder), at

    def install(self) -> None:
        fsync, write_table = os.fsync, writing.pq.write_table

        def watched_fsync(handle: int) -> None:
            self.place()
            fsync(handle)

        def half_written(table: object, where: Path, **options: object) -> None:
            if self._left == 0:
                write_table(table, where, **options)
                os.truncate(where, where.stat().st_size // 2)
            self.place()
            write_table(table, where, **options)

        os.fsync = watched_fsync
        writing.pq.write_table = half_written
        sys.addaudithook(self._hook)

    def place(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir")
        if event == "open" and isinstance(args[2], int):
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(args[0]).startswith(self._folder):
            self.place()


def killed(params: TraceParams, loaded: LoadedModel, at: int) -> bool:
    """Record in a process of its own that is killed at a place; False when it came to its end before that."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _Killer(Path(params.out), at).install()
            record(params, loaded=loaded)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed at place {at}"
    return os.WIFSIGNALED(status)


def test_killed_at_any_write_and_resumed_equals_an_uninterrupted_recording(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    """Rows, statistics and every other byte; and whatever is there says in between that it is unfinished."""
    record(trace(tmp_path / "whole", "tiny", texts, tokens=1300), loaded=llama)
    whole, finished = contents(tmp_path / "whole"), read_manifest(tmp_path / "whole")
    assert len(finished.train.shards) > 1
    assert sorted(whole) == sorted(
        [
            MANIFEST,
            STATISTICS,
            *(s.file for split in (finished.train, finished.held_out) for s in split.shards),
        ]
    )
    places = 0
    while killed(params := trace(tmp_path / "cut", "tiny", texts, tokens=1300), llama, places):
        if (tmp_path / "cut" / MANIFEST).exists() and not read_manifest(tmp_path / "cut").complete:
            assert refusal(lambda: Recording(tmp_path / "cut")).code == "recording_incomplete"
        record(msgspec.structs.replace(params, resume=True), loaded=llama)
        assert contents(tmp_path / "cut") == whole, f"killed at place {places}"
        shutil.rmtree(tmp_path / "cut")
        places += 1
    assert contents(tmp_path / "cut") == whole
    assert places > 30


def test_killed_again_and_again(tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None) -> None:
    """Every attempt gets a few writes further, until one comes through."""
    record(trace(tmp_path / "whole", "tiny", texts), loaded=llama)
    params = trace(tmp_path / "cut", "tiny", texts, resume=True)
    attempts = 0
    while killed(params, llama, 19):
        attempts += 1
        assert attempts < 50
    assert attempts > 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def interrupted(
    folder: Path, model: Path | str, text: Path, loaded: LoadedModel | None, **changes: object
) -> Manifest:
    """A recording that was asked to stop after its first commit."""

    class Stop(Progress):
        stop = False

        def checkpoint(self, done: float) -> None:
            self.stop = True

        def cancelled(self) -> bool:
            return self.stop

    from microscope.errors import Cancelled

    with pytest.raises(Cancelled):
        record(trace(folder, model, text, **changes), Stop(), loaded=loaded)
    manifest = read_manifest(folder)
    assert 0 < manifest.documents_read < 30
    return manifest


def test_an_interrupted_recording_of_an_older_version_is_summed_up_again(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    """It named no statistics file, and a kill between that and the manifest left the sums of other rows."""
    record(trace(tmp_path / "whole", "tiny", texts), loaded=llama)
    manifest = interrupted(tmp_path / "old", "tiny", texts, llama)
    tensors = load_file(tmp_path / "old" / manifest.statistics)
    (tmp_path / "old" / manifest.statistics).unlink()
    save_file(
        {name: 2 * t for name, t in tensors.items() if "total" not in name}, tmp_path / "old" / STATISTICS
    )
    raw = json.loads((tmp_path / "old" / MANIFEST).read_text())
    for name in ("statistics", "settings"):
        raw.pop(name)
    for site in raw["sites"]:
        site.pop("nonfinite")
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(raw))
    assert refusal(
        lambda: record(trace(tmp_path / "old", "tiny", texts, resume=True, held_out=0.3), loaded=llama)
    )
    record(trace(tmp_path / "old", "tiny", texts, resume=True), loaded=llama)
    whole, old = (load_file(tmp_path / name / STATISTICS) for name in ("whole", "old"))
    assert whole["resid_post.1.count"] == old["resid_post.1.count"]
    for name in ("resid_post.1.mean", "resid_post.1.squares"):
        np.testing.assert_allclose(old[name], whole[name], rtol=1e-6, atol=1e-6)
    shards = [{f.name: f.read_bytes() for f in (tmp_path / n).glob("*.parquet")} for n in ("whole", "old")]
    assert shards[0] == shards[1]
    assert Recording(tmp_path / "old").manifest.fingerprint == read_manifest(tmp_path / "whole").fingerprint


# --- continued with something else ----------------------------------------------------------------------

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

    monkeypatch.setattr("microscope.activations.forward.SiteReader.begin_windows", runs)
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
