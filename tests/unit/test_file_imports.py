"""Recordings and texts of others: what is sound comes through whole, everything else is refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from microscope.activations import Recording, read_manifest
from microscope.activations.importing import import_recording, pack_recording
from microscope.activations.manifest import MANIFEST, STATISTICS, Manifest, write_manifest
from microscope.activations.writer import recording_fingerprint
from microscope.errors import Cancelled, MicroscopeError
from microscope.params.files import ImportCorpusParams, ImportRecordingParams, PackRecordingParams
from microscope.progress import Progress
from microscope.quarantine.corpora import import_corpus


def digests(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def bring_in(path: Path, out: Path, **values: object) -> dict:
    return import_recording(ImportRecordingParams(path=str(path), out=str(out), **values))


@pytest.fixture
def archive(recording_folder: Path, tmp_path: Path) -> Path:
    pack_recording(PackRecordingParams(activations=str(recording_folder), out=str(tmp_path / "packed")))
    return tmp_path / "packed" / "recording.zip"


def test_out_and_in_again(recording_folder: Path, archive: Path, tmp_path: Path, model_folders) -> None:
    manifest = read_manifest(recording_folder)
    model = {"model": str(model_folders["llama"]), "dtype": "float32", "d_model": manifest.model.d_model}
    result = bring_in(archive, tmp_path / "in", **model)
    came, went = digests(tmp_path / "in"), digests(recording_folder)
    assert came.pop("manifest.json") != went.pop("manifest.json")
    assert came == went
    manifest.model.reference = model_folders["llama"].name  # the one thing that is not as it was
    assert read_manifest(tmp_path / "in") == manifest
    assert (result["fingerprint"], result["tokens"]) == (manifest.fingerprint, 4000)
    assert Recording(tmp_path / "in").rows("train") == manifest.train.rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "packed"], "nothing unpacked is left behind"


def test_a_folder_as_a_browser_sends_it(recording_folder: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent" / "acts"
    shutil.copytree(recording_folder, sent)
    (sent / "README.md").write_text("not part of it")
    bring_in(tmp_path / "sent", tmp_path / "in")
    assert digests(tmp_path / "in") == digests(recording_folder)


def test_a_zipped_folder(recording_folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "acts"), "zip", recording_folder.parent, recording_folder.name)
    bring_in(tmp_path / "acts.zip", tmp_path / "in")
    assert digests(tmp_path / "in") == digests(recording_folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_fingerprint": "0" * 32}, "another fingerprint"),
        ({"d_model": 7}, "this model has 7"),
        ({"n_layers": 99}, "this model has 99"),
        (
            {"model": "x", "dtype": "nf4", "model_fingerprint": "right"},
            "its weights were whole, here they are nf4",
        ),
    ],
)
def test_recordings_of_other_models(recording_folder: Path, tmp_path: Path, values, reason) -> None:
    if values.get("model_fingerprint") == "right":
        values = {**values, "model_fingerprint": read_manifest(recording_folder).model.fingerprint}
    with pytest.raises(MicroscopeError, match=reason) as refused:
        bring_in(recording_folder, tmp_path / "in", **values)
    assert refused.value.code == "wrong_model"
    assert not (tmp_path / "in").exists()


def test_the_weights_decide(recording_folder: Path, tmp_path: Path, model_folders) -> None:
    with pytest.raises(MicroscopeError, match="fingerprint") as refused:
        bring_in(recording_folder, tmp_path / "in", model=str(model_folders["qwen3"]), dtype="float32")
    assert refused.value.code == "wrong_model"


def first_shard(folder: Path) -> Path:
    return folder / read_manifest(folder).train.shards[0].file


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table], **options: object) -> None:
    """Change the first shard and make the fingerprint fit again, as somebody who means it would."""
    path = first_shard(folder)
    table = change(pq.read_table(path))
    pq.write_table(table, path, **{"row_group_size": 8192, "compression": "none", **options})
    seal(folder)


def seal(folder: Path, change: Callable[[Manifest], None] = lambda manifest: None) -> None:
    manifest = read_manifest(folder)
    change(manifest)
    manifest.fingerprint = recording_fingerprint(folder, manifest)
    write_manifest(folder, manifest)


def column(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, table.schema.field(name), values(table))

    return change


def infinite(table: pa.Table) -> pa.Array:
    width = table.schema.field("resid_post.2").type.byte_width
    raw = np.frombuffer(b"".join(v.as_py() for v in table["resid_post.2"]), "<u2").copy()
    raw[5] = 0x7C00
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(table), [None, pa.py_buffer(raw)])


def nullable(table: pa.Table) -> pa.Table:
    schema = table.schema.set(0, pa.field("doc", pa.int32(), True))
    return pa.Table.from_arrays(table.columns, schema=schema)


def with_statistics(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = {name: tensor.copy() for name, tensor in load_file(folder / STATISTICS).items()}
    change(tensors)
    save_file(tensors, folder / STATISTICS)


def manifest_with(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / MANIFEST).read_text())
        for dotted, value in values.items():
            *way, last = dotted.split("__")
            place = raw
            for step in way:
                place = place[int(step) if step.isdecimal() else step]
            place[last] = value
        (folder / MANIFEST).write_text(json.dumps(raw))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no_recording"),
    "manifest no JSON": (lambda f: (f / MANIFEST).write_text("{"), "bad_json"),
    "manifest of another kind": (manifest_with(format="x"), "bad_recording"),
    "unfinished": (manifest_with(complete=False), "recording_incomplete"),
    "shard missing": (lambda f: first_shard(f).unlink(), "bad_recording"),
    "shard outside": (manifest_with(train__shards=[{"file": "../x.parquet", "rows": 5}]), "bad_recording"),
    "shard twice": (lambda f: seal(f, lambda m: m.train.shards.append(m.train.shards[0])), "bad_recording"),
    "shard cut": (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:-9]), "bad_corpus_file"),
    "shard a pickle": (lambda f: first_shard(f).write_bytes(b"\x80\x04\x95" + bytes(99)), "pickle_refused"),
    "rows too few": (lambda f: rewrite(f, lambda t: t.slice(1)), "bad_recording"),
    "row groups too large": (
        lambda f: rewrite(f, lambda t: pa.concat_tables([t] * 40), row_group_size=10**6),
        "bad_recording",
    ),
    "column missing": (lambda f: rewrite(f, lambda t: t.drop_columns(["flags"])), "bad_recording"),
    "column of another type": (
        lambda f: rewrite(f, lambda t: t.set_column(0, "doc", t["doc"].cast(pa.int64()))),
        "bad_recording",
    ),
    "column with gaps": (lambda f: rewrite(f, nullable), "bad_recording"),
    "other width": (manifest_with(model__d_model=48), "bad_recording"),
    "site beyond the model": (manifest_with(sites__0__site="resid_post.40"), "bad_recording"),
    "no such site": (manifest_with(sites__0__site="nowhere"), "bad_site"),
    "token outside": (
        lambda f: rewrite(f, column("token", lambda t: pa.array([10**6] * len(t), pa.int32()))),
        "bad_recording",
    ),
    "norm negative": (
        lambda f: rewrite(f, column("resid_post.1.norm", lambda t: pa.array([-1.0] * len(t), pa.float32()))),
        "bad_recording",
    ),
    "values infinite": (lambda f: rewrite(f, column("resid_post.2", infinite)), "bad_recording"),
    "files of another fingerprint": (
        lambda f: seal(f) or manifest_with(fingerprint="0" * 32)(f),
        "bad_recording",
    ),
    "statistics missing": (lambda f: (f / STATISTICS).unlink(), "bad_recording"),
    "statistics of another shape": (
        lambda f: with_statistics(f, lambda t: t.update({"resid_post.1.mean": np.zeros(3)})),
        "bad_recording",
    ),
    "statistics infinite": (
        lambda f: with_statistics(f, lambda t: t["resid_post.1.mean"].fill(np.inf)),
        "bad_recording",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(recording_folder: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(recording_folder, damaged)
    damage, code = DAMAGE[name]
    damage(damaged)
    with pytest.raises(MicroscopeError) as refused:
        bring_in(damaged, tmp_path / "in")
    assert refused.value.code == code, refused.value
    assert not (tmp_path / "in").exists()


def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    raw = bytearray(archive.read_bytes())
    raw[len(raw) // 2] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(MicroscopeError) as refused:
        bring_in(archive, tmp_path / "in")
    assert refused.value.code in ("bad_archive", "bad_bundle")
    with pytest.raises(MicroscopeError, match="bytes; 1000 are allowed"):
        bring_in(archive, tmp_path / "in", max_bytes=1000)


# --- texts --------------------------------------------------------------------------------------------


def test_a_text_keeps_every_byte_and_gets_a_name_that_is_true(tmp_path: Path) -> None:
    sent = tmp_path / "called.txt"
    pq.write_table(pa.table({"text": ["one", "two", None]}), sent)
    result = import_corpus(ImportCorpusParams(path=str(sent), out=str(tmp_path / "out")))
    assert (result["file"], result["documents"]) == ("text.parquet", 2)
    assert (tmp_path / "out" / "text.parquet").read_bytes() == sent.read_bytes()
    again = import_corpus(ImportCorpusParams(path=str(sent), out=str(tmp_path / "out")))
    assert again == result


def test_damage_deep_inside_a_text_is_found(tmp_path: Path) -> None:
    sent = tmp_path / "t.parquet"
    texts = [f"{n} is a number of its own, {n * n} another" for n in range(50_000)]
    pq.write_table(pa.table({"text": texts}), sent, row_group_size=5000, compression="zstd")
    raw = bytearray(sent.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 200] = bytes(200)
    sent.write_bytes(raw)
    with pytest.raises(MicroscopeError) as refused:
        import_corpus(ImportCorpusParams(path=str(sent), out=str(tmp_path / "out")))
    assert refused.value.code in ("bad_corpus_file", "wrong_file_type")


def test_a_long_check_can_be_stopped(tmp_path: Path) -> None:
    class Impatient(Progress):
        def cancelled(self) -> bool:
            return True

    sent = tmp_path / "t.jsonl"
    sent.write_bytes(b'{"text": "' + b"word " * 2000 + b'"}\n')
    with sent.open("ab") as stream:
        for _ in range(2000):
            stream.write(b'{"text": "' + b"word " * 2000 + b'"}\n')
    with pytest.raises(Cancelled):
        import_corpus(ImportCorpusParams(path=str(sent), out=str(tmp_path / "out")), Impatient())
