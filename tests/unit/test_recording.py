"""Recording activations and reading them back."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.contestants.store import SITE, write_recording
from microscope.activations import OVERFLOW, Recording, ShuffledRows, record
from microscope.activations.ahead import read_ahead
from microscope.activations.corpus import open_corpus
from microscope.activations.forward import stored_rows
from microscope.activations.manifest import SiteRecord
from microscope.activations.writer import RecordingWriter, Rows, Running
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import TraceParams
from microscope.progress import Progress
from tests.tiny_models import make_corpus


def trace(folder: Path, model: Path, corpus: Path, **changes: object) -> TraceParams:
    base = {
        "model": str(model),
        "out": str(folder),
        "layers": (1, 2),
        "text": (str(corpus),),
        "tokens": 3000,
        "context_length": 32,
        "batch_tokens": 256,
        "held_out": 0.2,
        "dtype": "float32",
        "device": "cpu",
    }
    return TraceParams(**(base | changes))  # type: ignore[arg-type]


def all_rows(recording: Recording, split: str) -> dict[str, np.ndarray]:
    files = sorted(recording.folder.glob(f"{split}-*.parquet"))
    table = pa.concat_tables(pq.read_table(f) for f in files)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in ("doc", "pos", "token", "flags")}


def test_rows_are_the_models_own_activations(recording, llama):
    """Every window is run again, alone, through Hugging Face; the stored rows are those, in float16."""
    for site in ("resid_post.1", "resid_post.2"):
        record_ = recording.site(site)
        layer = int(site[-1])
        for chunk in recording.chunks("held_out", record_):
            for window in chunk.windows():
                with torch.no_grad():
                    ids = torch.from_numpy(window.token.astype(np.int64))[None]
                    hidden = llama.model(ids, output_hidden_states=True).hidden_states[layer + 1][0]
                np.testing.assert_allclose(window.values, hidden.numpy(), rtol=2e-3, atol=2e-3)
                np.testing.assert_allclose(window.norm, hidden.norm(dim=1).numpy(), rtol=1e-5)


def test_documents_are_never_split_between_train_and_held_out(recording):
    train, held = (all_rows(recording, split) for split in ("train", "held_out"))
    assert set(train["doc"]) & set(held["doc"]) == set()
    assert set(train["doc"])
    assert set(held["doc"])
    manifest = recording.manifest
    assert len(train["doc"]) + len(held["doc"]) == manifest.train.rows + manifest.held_out.rows == 4000
    for rows in (train, held):
        assert (np.diff(rows["doc"]) >= 0).all()
        same = np.diff(rows["doc"]) == 0
        assert (np.diff(rows["pos"])[same] > 0).all()


def test_a_document_is_held_out_by_its_text_alone(corpus):
    def held(seed: int) -> set[str]:
        return {
            d.text for d in open_corpus(text=(str(corpus),), held_out=0.2, seed=seed) if d.split == "held_out"
        }

    assert held(0) == held(1) != set()


def test_the_stored_column_is_plain_little_endian_float16(recording):
    site = recording.site("resid_post.2")
    file = next(recording.folder.glob("train-*.parquet"))
    table = pq.read_table(file)
    field = table.schema.field(site.column)
    assert field.type == pa.binary(2 * site.width)
    assert field.metadata[b"dtype"] == b"float16"
    assert json.loads(field.metadata[b"shape"]) == [site.width]
    first = np.frombuffer(table[site.column][0].as_py(), "<f2")
    chunk = next(recording.chunks("train", site))
    assert np.array_equal(first, chunk.values[0])


class _StopAt(Progress):
    """Asks to stop at the n-th report."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self._left = reports

    def cancelled(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_an_interrupted_recording_resumes_to_the_same_files(tmp_path, model_folders, corpus, monkeypatch):
    monkeypatch.setattr("microscope.activations.recorder.SHARD_ROWS", 500)
    model = model_folders["llama"]
    whole = record(trace(tmp_path / "whole", model, corpus))
    for attempt in range(3):
        with pytest.raises(Cancelled):
            record(trace(tmp_path / "parts", model, corpus, resume=attempt > 0), _StopAt(4))
    with pytest.raises(MicroscopeError, match="interrupted"):
        Recording(tmp_path / "parts")
    resumed = record(trace(tmp_path / "parts", model, corpus, resume=True))
    assert resumed.fingerprint == whole.fingerprint
    assert (resumed.train, resumed.held_out, resumed.corpus) == (whole.train, whole.held_out, whole.corpus)
    assert resumed.sites[0].rms_norm == pytest.approx(whole.sites[0].rms_norm)
    for split in ("train", "held_out"):
        one, two = (all_rows(Recording(tmp_path / n), split) for n in ("whole", "parts"))
        assert all(np.array_equal(one[c], two[c]) for c in one)


def test_per_document_budget_spreads_over_the_document(tmp_path, model_folders, corpus):
    record(trace(tmp_path / "r", model_folders["llama"], corpus, tokens_per_document=64, tokens=2000))
    rows = all_rows(Recording(tmp_path / "r"), "train")
    first = rows["pos"][rows["doc"] == rows["doc"][0]]
    assert len(first) <= 64
    assert first[0] == 0
    assert first[-1] > 64


def test_statistics_leave_out_sinks_and_special_tokens(recording):
    site = recording.site("resid_post.2")
    values = []
    for chunk in recording.chunks("train", site):
        values.append(chunk.values[recording.keep_mask(site, chunk.flags, chunk.norm)].astype(np.float64))
    rows = np.concatenate(values)
    assert site.rms_norm == pytest.approx(np.sqrt((rows**2).sum(1).mean()), rel=1e-3)
    gamma = np.linalg.norm(rows.mean(0)) / np.sqrt(rows.var(0).sum())
    assert site.gamma == pytest.approx(gamma, rel=1e-3)


def test_what_overflows_float16_is_flagged_and_counted(tmp_path, recording):
    manifest = recording.manifest
    site = SiteRecord(site="resid_post.2", column="resid_post.2", norm_column="resid_post.2.norm", width=4)
    fresh = type(manifest)(
        **{
            f: getattr(manifest, f)
            for f in ("model", "corpus", "context_length", "wrapping", "outlier_factor")
        },
        held_out_share=0.1,
        sites=[site],
        train=type(manifest.train)(),
        held_out=type(manifest.train)(),
    )
    values = torch.ones(1, 40, 4)
    values[0, 3] = 1e6
    values[0, 5] = 100  # a sink
    values[0, 7] = 60_000  # longer than the largest float16, with entries that fit
    (stored,) = stored_rows(values, [40])
    assert stored.values.dtype == np.float16
    assert np.array_equal(stored.values[7], [60_000] * 4)
    flags = np.zeros(40, np.uint8)
    numbers = np.arange(40, dtype=np.int32)
    rows = Rows(np.zeros_like(numbers), numbers, np.zeros_like(numbers), flags, {site.site: stored})
    writer = RecordingWriter(tmp_path, fresh)
    writer.set_thresholds([rows])
    writer.add("train", rows)
    writer.flush(1)
    assert flags[3] == OVERFLOW
    assert flags.sum() == OVERFLOW
    assert (site.overflowed, site.outliers) == (1, 2)
    assert site.rms_norm == pytest.approx(2.0)


def test_sums_are_exact_to_a_millionth():
    """Against float64, with a direction whose mean is a hundred times its spread, and rows to leave out."""
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (5000, 64))
    values[:, 3] += 100
    values = values.astype(np.float16)
    ordinary = random.random(5000) < 0.9
    running = Running(64)
    for first in range(0, 5000, 700):
        running.add(values[first : first + 700], ordinary[first : first + 700])
    exact = values[ordinary].astype(np.float64)
    assert running.count == ordinary.sum()
    assert np.abs(running.total - exact.sum(0)).max() < 1e-6 * np.abs(exact).sum(0).max()
    np.testing.assert_allclose(running.squares, (exact**2).sum(0), rtol=1e-6)
    np.testing.assert_allclose(running.variance, exact.var(0), rtol=5e-3)


# --- shuffling ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory, model_folders, corpus) -> Recording:
    """A recording of several shards and row groups, so that blocks matter."""
    patch = pytest.MonkeyPatch()
    patch.setattr("microscope.activations.recorder.SHARD_ROWS", 600)
    patch.setattr("microscope.activations.writer.ROW_GROUP", 128)
    folder = tmp_path_factory.mktemp("many") / "r"
    record(trace(folder, model_folders["llama"], corpus))
    patch.undo()
    return Recording(folder)


def stream(
    recording: Recording, rows: int, *, buffer_bytes: int, seed: int = 0, start: int = 0, size: int = 50
):
    site = recording.site("resid_post.2")
    shuffled = ShuffledRows(recording, site, seed=seed, buffer_bytes=buffer_bytes)
    out = []
    for batch in shuffled.batches(size, start=start):
        out.append(batch.numpy())
        if len(out) * size >= rows:
            return np.concatenate(out), shuffled.rows_per_epoch
    raise AssertionError("the stream is endless")


@pytest.mark.parametrize("buffer_bytes", [64 * 300, 10**9])
def test_an_epoch_gives_every_row_exactly_once(many_groups, buffer_bytes):
    """Rows are told apart by content: the sorted epoch equals the sorted split."""
    site = many_groups.site("resid_post.2")
    expected = np.concatenate(
        [c.values[many_groups.keep_mask(site, c.flags, c.norm)] for c in many_groups.chunks("train", site)]
    )
    rows, per_epoch = stream(many_groups, len(expected), buffer_bytes=buffer_bytes, size=1)
    assert per_epoch == len(expected)
    order = [np.lexsort(a.T) for a in (rows, expected)]
    assert np.array_equal(rows[order[0]], expected[order[1]])
    assert not np.array_equal(rows, expected)


def test_rows_are_mixed_across_the_whole_recording(many_groups):
    """With a full buffer the first tenth of an epoch draws evenly on all shards."""
    site = many_groups.site("resid_post.2")
    where = {}
    for number, chunk in enumerate(many_groups.chunks("train", site)):
        for row in chunk.values:
            where[row.tobytes()] = number
    rows, per_epoch = stream(many_groups, 300, buffer_bytes=10**9)
    seen = np.bincount([where[r.tobytes()] for r in rows[:300]], minlength=max(where.values()) + 1)
    share = np.bincount(list(where.values())) / len(where)
    assert np.abs(seen / 300 - share).max() < 0.08
    assert per_epoch > 1000


@pytest.mark.parametrize("buffer_bytes", [64 * 300, 10**9])
def test_the_stream_continues_from_any_position(many_groups, buffer_bytes):
    whole, per_epoch = stream(many_groups, 6000, buffer_bytes=buffer_bytes)
    assert per_epoch < 6000  # the second epoch is reached
    for start in (50, 1000, per_epoch - per_epoch % 50 + 50):
        rest, _ = stream(many_groups, 6000 - start, buffer_bytes=buffer_bytes, start=start)
        assert np.array_equal(whole[start : start + len(rest)], rest[: len(whole) - start])
    other, _ = stream(many_groups, 500, buffer_bytes=buffer_bytes, seed=1)
    assert not np.array_equal(other, whole[:500])


@pytest.mark.parametrize("buffer_bytes", [64 * 130, 64 * 300, 64 * 700, 10**9])
def test_the_stream_is_what_its_definition_says(many_groups, buffer_bytes):
    """Groups permuted, packed into blocks, rows of a block permuted: computed anew from the whole split."""
    site = many_groups.site("resid_post.2")
    groups = []
    for file in sorted(many_groups.folder.glob("train-*.parquet")):
        parquet = pq.ParquetFile(file)
        for number in range(parquet.num_row_groups):
            table = parquet.read_row_group(number)
            values = np.stack([np.frombuffer(v.as_py(), "<f2") for v in table["resid_post.2"]])
            keep = many_groups.keep_mask(site, table["flags"].to_numpy(), table[site.norm_column].to_numpy())
            groups.append(values[keep])
    expected = []
    for epoch in range(3):
        order = np.random.default_rng((5, epoch, 0)).permutation(len(groups))
        blocks: list[list[int]] = [[]]
        for group in order:
            held = sum(len(groups[g]) for g in blocks[-1])
            if held and held + len(groups[group]) > buffer_bytes // (2 * site.width):
                blocks.append([])
            blocks[-1].append(group)
        for number, block in enumerate(blocks):
            rows = np.concatenate([groups[g] for g in sorted(block)])
            expected.append(rows[np.random.default_rng((5, epoch, 1, number)).permutation(len(rows))])
    wanted = np.concatenate(expected)
    rows, _ = stream(many_groups, len(wanted) - 100, buffer_bytes=buffer_bytes, seed=5, size=70)
    assert np.array_equal(rows, wanted[: len(rows)])


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> tuple[Recording, np.ndarray]:
    """20,000 rows of 256, 10 MB: row groups of several pages, whose headers leave rows at odd offsets."""
    values = np.random.default_rng(0).standard_normal((20_000, 256), np.float32).astype(np.float16)
    folder = tmp_path_factory.mktemp("wide") / "r"
    write_recording(folder, values)
    return Recording(folder), values


@pytest.mark.parametrize("buffer_bytes", [2**22, 2**30])
def test_rows_are_found_in_the_pages_and_not_kept(wide, buffer_bytes):
    """What is allocated are batches and the places of rows, even where the buffer is all there is."""
    recording, values = wide
    column = recording.mapped("train", recording.site(SITE))[0]
    places = np.concatenate([column.offsets(group) for group in range(3)])
    assert np.array_equal(column.values[places].view("<f2").reshape(values.shape), values)
    assert len(set(places % 512)) > 5  # several pages, and a header before each
    stream = ShuffledRows(recording, recording.site(SITE), seed=0, buffer_bytes=buffer_bytes)
    tracemalloc.start()
    seen = sum(batch.float().sum().item() for batch in itertools.islice(stream.batches(500), 80))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == pytest.approx(2 * values.astype(np.float64).sum(), abs=1)
    assert peak < 4e6


@pytest.mark.parametrize("layout", [{"compression": "zstd"}, {"use_dictionary": True}])
def test_a_shard_that_was_rewritten_is_refused_and_not_misread(wide, tmp_path, layout):
    shutil.copytree(wide[0].folder, tmp_path / "r")
    (shard,) = (tmp_path / "r").glob("train-*.parquet")
    table = pq.read_table(shard)
    pq.write_table(table, shard, **{"compression": "none", "use_dictionary": False, **layout})
    recording = Recording(tmp_path / "r")
    with pytest.raises(MicroscopeError) as caught:
        ShuffledRows(recording, recording.site(SITE), seed=0, buffer_bytes=2**22)
    assert caught.value.code == "bad_recording"
    assert "not stored as plain rows" in caught.value.message


def test_reading_ahead_gives_the_same_items_and_no_more_than_asked():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    ahead = read_ahead(source(), 3)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert len(made) == 4  # the one given out and three in advance
    assert list(ahead) == list(range(1, 100))


def test_an_error_comes_in_the_place_of_its_item_and_no_thread_stays():
    def source():
        yield 1
        raise MicroscopeError("broken", "The second item is broken.")

    before = threading.active_count()
    ahead = read_ahead(source(), 2)
    assert next(ahead) == 1
    with pytest.raises(MicroscopeError, match="second"):
        next(ahead)
    unfinished = read_ahead(iter(range(10)), 2)
    next(unfinished)
    unfinished.close()
    assert threading.active_count() == before


# --- what goes wrong ------------------------------------------------------------------------------------


def refused(code: str, **changes: object):
    def check(tmp_path, model_folders, corpus):
        with pytest.raises(MicroscopeError) as caught:
            record(trace(tmp_path / "out", model_folders["llama"], corpus, **changes))
        assert caught.value.code == code
        return caught.value

    return check


def test_bad_requests(tmp_path, model_folders, corpus):
    folders = (tmp_path, model_folders, corpus)
    assert "4 layers" in refused("layer_out_of_range", layers=(4,))(*folders).message
    assert "128" in refused("context_too_long", context_length=500)(*folders).message
    refused("no_corpus", text=())(*folders)
    refused("no_such_file", text=("nowhere.txt",))(*folders)
    refused("no_such_device", device="cuda:9")(*folders)


def test_bad_corpora(tmp_path, model_folders, corpus):
    files = {
        "empty.txt": (b"  \n\n ", "corpus_empty"),
        "one.txt": (b"the state", "corpus_too_small"),
        "pickle.txt": (b"\x80\x04\x95pickle", "pickle_refused"),
        "latin.txt": ("déjà vu".encode("latin-1"), "wrong_file_type"),
        "nul.txt": (b"text\0more", "wrong_file_type"),
        "bad.jsonl": (b'{"text": "a"}\n{oops\n', "bad_corpus_file"),
        "field.jsonl": (b'{"id": "a"}\n', "no_text_field"),
        "cut.parquet": (b"PAR1\0\0\0", "bad_corpus_file"),
    }
    for name, (content, code) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        error = refused(code, text=(str(path),))(tmp_path, model_folders, corpus)
        assert name.split(".")[0] in error.message


def test_jsonl_and_parquet_corpora_read_like_text(tmp_path):
    texts = [f"document number {i} about roads" for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": t}) for t in texts))
    pq.write_table(pa.table({"body": texts}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        corpus = open_corpus(text=(str(tmp_path / name),), text_field="body", held_out=0.1)
        assert sorted(d.text for d in corpus) == sorted(texts)


def test_few_documents_are_cut_into_paragraphs(tmp_path):
    text = "\n\n".join(f"paragraph {i} " + "roads and schools " * 60 for i in range(30))
    (tmp_path / "one.txt").write_text(text)
    corpus = open_corpus(text=(str(tmp_path / "one.txt"),), held_out=0.05)
    splits = [d.split for d in corpus]
    assert corpus.segmentation == "paragraphs"
    assert splits.count("held_out") >= 1
    assert splits.count("train") >= 5


def test_an_existing_recording_is_not_overwritten(tmp_path, model_folders, corpus):
    model = model_folders["llama"]
    record(trace(tmp_path / "r", model, corpus, tokens=600))
    with pytest.raises(MicroscopeError) as caught:
        record(trace(tmp_path / "r", model, corpus, tokens=600))
    assert caught.value.code == "recording_exists"
    with pytest.raises(MicroscopeError, match=r"sites was .* and is now "):
        record(trace(tmp_path / "r", model, corpus, layers=(0,), resume=True))


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "not_json"])
def test_damaged_recordings_are_named(tmp_path, recording_folder, damage):
    copy = shutil.copytree(recording_folder, tmp_path / "copy")
    shard = next(copy.glob("train-*.parquet"))
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "delete":
        shard.unlink()
    elif damage == "manifest":
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["train"]["shards"][0]["rows"] += 1
        (copy / "manifest.json").write_text(json.dumps(manifest))
    else:
        (copy / "manifest.json").write_text("{")
    with pytest.raises(MicroscopeError) as caught:
        Recording(copy)
    assert caught.value.code == "bad_recording"


def test_no_recording_says_so(tmp_path, recording):
    with pytest.raises(MicroscopeError, match="no recording"):
        Recording(tmp_path)
    with pytest.raises(MicroscopeError, match=r"resid_post\.1, resid_post\.2"):
        recording.site("resid_post.3")


def test_documents_shorter_than_a_context_are_recorded_whole(tmp_path, model_folders):
    corpus = make_corpus(tmp_path / "short", documents=60, words=9)
    record(trace(tmp_path / "r", model_folders["gpt2"], corpus, tokens=400))
    recording = Recording(tmp_path / "r")
    rows = all_rows(recording, "train")
    assert np.bincount(rows["doc"])[np.unique(rows["doc"])].max() == 9
    site = recording.site("resid_post.2")
    windows = [w for c in recording.chunks("train", site) for w in c.windows()]
    assert len(windows) == recording.manifest.train.documents
