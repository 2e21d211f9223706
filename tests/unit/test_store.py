"""The store at work: mixtures of texts, several processes, real kills, little memory, files of others."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from microscope.activations import Recording, load_recorded_model, record
from microscope.activations.corpus import open_corpus
from microscope.activations.forward import SiteReader
from microscope.activations.parallel import Forward
from microscope.cli import main
from microscope.errors import MicroscopeError
from microscope.params import Site, TraceParams, TrainParams
from microscope.texts import TextFile
from microscope.training import train
from tests.tiny_models import make_corpus


def trace(folder: Path, model: Path, *texts: Path, **changes: object) -> TraceParams:
    base = {
        "model": str(model),
        "out": str(folder),
        "layers": (1, 2),
        "text": tuple(map(str, texts)),
        "tokens": 3000,
        "context_length": 32,
        "batch_tokens": 256,
        "held_out": 0.2,
        "dtype": "float32",
        "device": "cpu",
    }
    return TraceParams(**(base | changes))  # type: ignore[arg-type]


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


# --- texts ----------------------------------------------------------------------------------------------


def test_weights_are_shares_of_tokens(tmp_path, model_folders):
    one = make_corpus(tmp_path / "one", documents=80, words=60, seed=1)
    two = make_corpus(tmp_path / "two", documents=80, words=35, seed=2)
    manifest = record(trace(tmp_path / "r", model_folders["llama"], one, two, weights=(3.0, 1.0)))
    first, second = manifest.corpus.sources
    assert first.tokens + second.tokens == 3000
    assert first.tokens / 3000 == pytest.approx(0.75, abs=0.03)
    assert first.documents + second.documents == manifest.corpus.documents
    assert [s.description for s in manifest.corpus.sources] == ["one", "two"]


def test_a_text_that_ends_early_leaves_the_rest_to_the_others(tmp_path, model_folders):
    short = make_corpus(tmp_path / "short", documents=30, words=10, seed=1)
    long = make_corpus(tmp_path / "long", documents=80, words=60, seed=2)
    manifest = record(trace(tmp_path / "r", model_folders["llama"], short, long, weights=(1.0, 1.0)))
    assert [s.tokens for s in manifest.corpus.sources] == [300, 2700]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_wrong_weights_are_refused(tmp_path, weights):
    with pytest.raises(MicroscopeError) as caught:
        trace(tmp_path, tmp_path, tmp_path, tmp_path, weights=weights)
    assert caught.value.code == "bad_weights"


def test_text_waits_on_disk_in_the_same_order(tmp_path, monkeypatch):
    folder = make_corpus(tmp_path / "texts", documents=50)
    in_memory = [d.text for d in open_corpus(text=(str(folder),), held_out=0.1, seed=3)]
    monkeypatch.setattr("microscope.activations.corpus.MEMORY_BYTES", 100)
    assert [d.text for d in open_corpus(text=(str(folder),), held_out=0.1, seed=3)] == in_memory
    assert in_memory != sorted(in_memory)


def test_a_large_text_file_is_read_in_pieces_that_lose_nothing(tmp_path, monkeypatch):
    text = "\n\n".join(f"paragraph {i} " + "roads and schools " * 20 for i in range(50))
    (tmp_path / "large.txt").write_text(text)
    monkeypatch.setattr("microscope.texts.files.LARGE_TEXT", 1000)
    monkeypatch.setattr("microscope.texts.pieces.LARGE_PIECE", 2000)
    pieces = list(TextFile(tmp_path / "large.txt"))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(piece.startswith("paragraph") for piece in pieces)


# --- processes, memory, kills ---------------------------------------------------------------------------


def test_two_processes_write_what_one_writes(tmp_path, model_folders, corpus):
    one = record(trace(tmp_path / "one", model_folders["llama"], corpus))
    two = record(trace(tmp_path / "two", model_folders["llama"], corpus, processes=2))
    assert two.fingerprint == one.fingerprint
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_a_dead_tracing_process_is_an_error_with_a_remedy(llama):
    def batches():
        for number in range(100):
            if number == 3:
                for child in multiprocessing.active_children():
                    child.kill()
            yield number, [np.arange(8, dtype=np.int32)]

    forward = Forward(llama, [Site("resid_post", 1)], processes=2)
    with forward, pytest.raises(MicroscopeError) as caught:
        list(forward.run(batches()))
    assert caught.value.code == "process_died"
    assert "--resume" in caught.value.hint


def test_out_of_memory_names_a_batch_that_fits(tmp_path, model_folders, corpus, monkeypatch):
    read = SiteReader.read

    def little_memory(self, ids, real):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return read(self, ids, real)

    monkeypatch.setattr(SiteReader, "read", little_memory)
    with pytest.raises(MicroscopeError) as caught:
        record(trace(tmp_path / "r", model_folders["llama"], corpus))
    assert caught.value.code == "out_of_memory"
    assert "--batch-tokens 64," in caught.value.hint
    record(trace(tmp_path / "r", model_folders["llama"], corpus, batch_tokens=64, resume=True))


def test_several_kinds_of_sites_in_one_pass(tmp_path, model_folders, corpus):
    """Each is what a recording of it alone holds; a transcoder is trained from one to the other."""
    model = model_folders["llama"]
    both = record(trace(tmp_path / "both", model, corpus, site=("resid_mid", "mlp_act")))
    assert [s.site for s in both.sites] == ["resid_mid.1", "mlp_act.1", "resid_mid.2", "mlp_act.2"]
    assert [s.width for s in both.sites] == [32, 64, 32, 64]
    together = Recording(tmp_path / "both")
    for kind in ("resid_mid", "mlp_act"):
        record(trace(tmp_path / kind, model, corpus, site=kind))
        alone = Recording(tmp_path / kind)
        for name in (f"{kind}.1", f"{kind}.2"):
            pairs = zip(
                together.chunks("train", together.site(name)),
                alone.chunks("train", alone.site(name)),
                strict=True,
            )
            assert all(np.array_equal(a.values, b.values) for a, b in pairs)
    sae = train(
        TrainParams(
            activations=str(tmp_path / "both"), out=str(tmp_path / "sae"), layer=1, site="resid_mid",
            site_out="mlp_act", layer_out=2, width=(96,), k=(8,), tokens=3000, batch_size=200, device="cpu",
        )
    )  # fmt: skip
    assert (sae.config.site, sae.config.site_out) == ("resid_mid.1", "mlp_act.2")
    assert (sae.config.d_in, sae.config.width_out) == (32, 64)


def test_a_complete_recording_is_not_an_error_to_resume(tmp_path, model_folders, corpus):
    """Nothing is computed or written again; the command says so and succeeds."""
    out = tmp_path / "r"
    record(trace(out, model_folders["llama"], corpus))
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()}
    arguments = ["trace", "--model", str(model_folders["llama"]), "--out", str(out), "--layers", "1", "2"]
    arguments += ["--text", str(corpus), "--tokens", "3000", "--context-length", "32"]
    arguments += ["--held-out", "0.2", "--device", "cpu", "--resume"]
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 0, said.output
    assert "is complete" in " ".join(said.stderr.split())
    assert "nothing left to do" in said.stderr
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()} == before
    more = CliRunner().invoke(main, [*arguments, "--tokens", "9000000"])
    assert more.exit_code == 0
    assert "record more into another --out" in " ".join(more.stderr.split())


def test_a_killed_recording_continues_without_duplicates(tmp_path, model_folders):
    """kill -9 while two processes are at work; the end is byte for byte what an undisturbed run writes."""
    corpus = make_corpus(tmp_path / "texts", documents=400, words=110)
    params = trace(
        tmp_path / "parts",
        model_folders["llama"],
        corpus,
        tokens=40_000,
        batch_tokens=1024,
        memory_mb=2,
        processes=2,
    )
    config = tmp_path / "config.json"
    config.write_bytes(msgspec.json.encode(params))
    command = [sys.executable, "-m", "microscope", "trace", "--events", "-", "--config", str(config)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        event = json.loads(line)
        assert event["type"] not in ("result", "error"), event
        if event["type"] == "checkpoint":
            break
    child.kill()
    child.wait()
    _wait_for_orphans(str(config))
    with pytest.raises(MicroscopeError, match="interrupted"):
        Recording(params.out)
    record(msgspec.structs.replace(params, resume=True))
    record(msgspec.structs.replace(params, out=str(tmp_path / "whole"), processes=1))
    whole, parts = Recording(tmp_path / "whole"), Recording(tmp_path / "parts")
    assert parts.manifest.fingerprint == whole.manifest.fingerprint
    assert parts.manifest.corpus == whole.manifest.corpus
    assert len(whole.manifest.train.shards) > 2
    assert shards(tmp_path / "parts") == shards(tmp_path / "whole")


def _wait_for_orphans(mark: str) -> None:
    """The tracing processes die with the one that was killed."""
    for _ in range(100):
        left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _command_line(p)]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(left)


def _command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_little_memory_means_more_shards_and_the_same_rows(tmp_path, model_folders, corpus):
    model = model_folders["llama"]
    record(trace(tmp_path / "much", model, corpus))
    record(trace(tmp_path / "little", model, corpus, memory_mb=1, layers=(0, 1, 2, 3), tokens=3000))
    much, little = Recording(tmp_path / "much"), Recording(tmp_path / "little")
    site = much.site("resid_post.2")
    one, two = (np.concatenate([c.values for c in r.chunks("train", site)]) for r in (much, little))
    np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3)  # batches differ, and with them roundings


# --- files of others ------------------------------------------------------------------------------------

WIDTH, ROWS = 16, 2000


def activations(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (ROWS, WIDTH)).astype(np.float16)


def fixed_list(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])


LAYOUTS = {
    "fixed_list_float32": lambda v: {"resid_post.3": fixed_list(v.astype(np.float32), pa.float32())},
    "fixed_list_float16": lambda v: {"blocks.3.hook_resid_post": fixed_list(v, pa.float16())},
    "plain_list": lambda v: {"layer_3": pa.array(v.astype(np.float64).tolist(), pa.list_(pa.float64()))},
    "large_list": lambda v: {"model.layers.3": pa.array(v.tolist(), pa.large_list(pa.float32()))},
    "binary": lambda v: {
        "resid_post.3": pa.array([row.tobytes() for row in v], pa.binary(2 * WIDTH)),
        "doc": pa.array(np.arange(ROWS) // 40),
        "pos": pa.array(np.arange(ROWS) % 40),
        "token": pa.array(np.arange(ROWS) % 7),
    },
    "contexts": lambda v: {
        "layer3": pa.array(v.reshape(-1, 40, WIDTH).tolist(), pa.list_(pa.list_(pa.float32(), WIDTH))),
        "input_ids": pa.array((np.arange(ROWS) % 7).reshape(-1, 40).tolist(), pa.list_(pa.int64())),
    },
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICROSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet_of_others_is_read(tmp_path, cache, layout):
    values = activations()
    values[5] = 300  # a sink
    file = tmp_path / "theirs.parquet"
    pq.write_table(
        pa.table(LAYOUTS[layout](values)), file, row_group_size=700 if layout != "contexts" else 20
    )
    recording = Recording(file)
    site = recording.site("resid_post.3")
    assert site.width == WIDTH
    chunks = [c for split in ("train", "held_out") for c in recording.chunks(split, site)]
    rows = np.concatenate([c.values for c in chunks])
    assert recording.rows("train") > recording.rows("held_out") > 0
    assert sorted(map(bytes, rows)) == sorted(map(bytes, values))
    assert sum(int((~recording.keep_mask(site, c.flags, c.norm)).sum()) for c in chunks) == 1
    docs = [
        np.unique(np.concatenate([c.doc for c in recording.chunks(s, site)])) for s in ("train", "held_out")
    ]
    assert not set(docs[0]) & set(docs[1])
    if layout in ("binary", "contexts"):
        assert recording.manifest.context_length == 40
        tokens = np.concatenate([c.token for c in chunks])
        assert np.bincount(tokens, minlength=7).tolist() == np.bincount(np.arange(ROWS) % 7).tolist()
        assert all(len(w.doc) == 40 for c in chunks for w in c.windows())


def test_our_own_shard_alone_is_a_recording_and_is_converted_once(recording_folder, cache):
    file = sorted(recording_folder.glob("train-*.parquet"))[0]
    alone, whole = Recording(file), Recording(recording_folder)
    assert Recording(file).folder == alone.folder
    assert {s.site for s in alone.manifest.sites} == {"resid_post.1", "resid_post.2"}
    site = whole.site("resid_post.1")
    rows = np.concatenate([c.values for s in ("train", "held_out") for c in alone.chunks(s, site)])
    expected = pq.read_table(file)["resid_post.1"]
    assert sorted(map(bytes, rows)) == sorted(v.as_py() for v in expected)


def test_an_sae_trains_on_parquet_of_others(tmp_path, cache):
    from microscope.training import train_sae

    file = tmp_path / "layer3.parquet"
    pq.write_table(
        pa.table({"activations": fixed_list(activations().astype(np.float32), pa.float32())}), file
    )
    sae = train_sae(str(file), str(tmp_path / "sae"), 3, latent_dim=32, k=4, tokens=4000, batch_size=200)
    assert sae.config.site == "resid_post.3"


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"text": pa.array(["a", "b"])}, "bad_recording"),
        ({"values": pa.array([[1.0], [2.0]])}, "bad_recording"),  # of which layer?
        ({"layer_3": pa.array([[1.0], [2.0, 3.0]] * 20)}, "bad_recording"),
        ({"layer_3": pa.array([[1.0]] * 4), "doc": pa.array([0] * 4)}, "corpus_too_small"),
    ],
)
def test_parquet_that_is_no_recording_says_what_is_missing(tmp_path, cache, columns, code):
    pq.write_table(pa.table(columns), tmp_path / "theirs.parquet")
    with pytest.raises(MicroscopeError) as caught:
        Recording(tmp_path / "theirs.parquet")
    assert caught.value.code == code
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "theirs.parquet").read_bytes()[:-20])
    with pytest.raises(MicroscopeError) as caught:
        Recording(tmp_path / "cut.parquet")
    assert caught.value.code == "bad_recording"


def test_another_model_is_refused_unless_forced(recording, model_folders):
    other = str(model_folders["qwen2"])
    with pytest.raises(MicroscopeError) as caught:
        load_recorded_model(recording, other, "cpu")
    assert caught.value.code == "wrong_model"
    assert "--force" in caught.value.hint
    assert load_recorded_model(recording, other, "cpu", force=True).reference == other
