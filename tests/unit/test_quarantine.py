"""Files of strangers: whatever the bytes, the answer is an error of ours or the truth about the file."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from microscope.errors import MicroscopeError
from microscope.quarantine import check_corpus, check_file, check_folder, check_safetensors, extract_zip

FUZZ = settings(
    max_examples=1200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(MicroscopeError) as caught:
        call(*arguments, **options)
    return caught.value.code


def tensors_file(path: Path, header: object, data: bytes = b"", *, raw: bytes | None = None) -> Path:
    encoded = raw if raw is not None else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def entry(start: int, stop: int, shape=(2,), dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop], **more}


def test_files_of_the_real_library_pass(tmp_path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "c": torch.tensor(2)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"note": "ü"})
    assert check_safetensors(tmp_path / "x.safetensors") == {
        "a": ("F32", (3, 5)),
        "b": ("BF16", (7,)),
        "c": ("I64", ()),
    }


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),  # overlap
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20),  # gap
        ({"a": entry(0, 8)}, 12),  # padded
        ({"a": entry(0, 8)}, 4),  # cut
        ({"a": entry(0, 8, shape=(3,))}, 8),
        ({"a": entry(0, 8, shape=(2**63, 2))}, 8),
        ({"a": entry(0, 8, shape=(-2, -1))}, 8),
        ({"a": entry(0, 8, shape=(True, 2))}, 8),
        ({"a": entry(0, 8, shape=(2.0,))}, 8),
        ({"a": entry(8, 0)}, 8),
        ({"a": entry(0, 8, dtype="F3")}, 8),
        ({"a": entry(0, 8, dtype=["F32"])}, 8),
        ({"a": entry(0, 8, extra=1)}, 8),
        ({"a": {"dtype": "F32"}}, 8),
        ({"__metadata__": {"x": 1}, "a": entry(0, 8)}, 8),
        ([1], 0),
    ],
)
def test_unsound_headers(tmp_path, header, data) -> None:
    path = tensors_file(tmp_path / "x.safetensors", header, bytes(data))
    assert refusal(check_safetensors, path) == "bad_safetensors"


def test_header_tricks(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    one = json.dumps(entry(0, 8))
    tensors_file(path, None, bytes(8), raw=f'{{"a": {one}, "a": {one}}}'.encode())
    assert refusal(check_safetensors, path) == "bad_safetensors"
    tensors_file(path, None, raw=b'{"a":' * 100_000)
    assert refusal(check_safetensors, path) == "bad_safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert refusal(check_safetensors, path) == "bad_safetensors"
    path.write_bytes(b"\x00")
    assert refusal(check_safetensors, path) == "bad_safetensors"
    # A sound one whose length begins like a pickle is still a sound one.
    padded = json.dumps({"a": entry(0, 8)}).ljust(0x480).encode()
    tensors_file(path, None, bytes(8), raw=padded)
    assert path.read_bytes()[:2] == b"\x80\x04"
    check_file(path, "x.safetensors")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["x.safetensors", "x.json", "ae.pt", "notes.txt", "README"])
def test_pickles_are_refused_by_content(tmp_path, protocol, name) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": [1, 2]}, protocol=protocol))
    assert refusal(check_folder, tmp_path) in ("pickle_refused", "bad_safetensors", "bad_json")


def test_torch_files_are_refused_under_any_name(tmp_path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "ae.pt")
    assert refusal(check_folder, tmp_path) == "pickle_refused"
    (tmp_path / "ae.pt").rename(tmp_path / "model.safetensors")
    assert refusal(check_folder, tmp_path) == "wrong_file_type"


def test_numpy_archives(tmp_path) -> None:
    np.savez(tmp_path / "params.npz", W=np.zeros((3, 4), np.float32), b=np.zeros(4))
    assert check_folder(tmp_path) == {".npz": 1}
    np.savez(tmp_path / "params.npz", W=np.array([{"a": 1}], dtype=object))
    assert refusal(check_folder, tmp_path) == "pickle_refused"
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
        )
        archive.writestr("W.npy", head.getvalue() + bytes(16))
    assert refusal(check_folder, tmp_path) == "bad_array"


def test_links_are_refused(tmp_path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "f" / "cfg.json").symlink_to(tmp_path / "secret.json")
    assert refusal(check_folder, tmp_path / "f") == "wrong_file_type"


def archive_of(path: Path, *entries: tuple[str, bytes], method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:/x", "a\\..\\x", ".ssh/key", "a/./b", "x\n", "a" * 600]
)
def test_archives_stay_in_their_folder(tmp_path, name) -> None:
    path = archive_of(tmp_path / "x.zip", (name, b"x"))
    out = tmp_path / "out"
    out.mkdir()
    assert refusal(extract_zip, path, out, max_bytes=10**6) == "bad_archive"
    assert list(out.rglob("*")) == []
    assert not (tmp_path / "x").exists()


def test_archive_bombs_and_tricks(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    bomb = archive_of(tmp_path / "b.zip", ("zeros", bytes(30 << 20)), method=zipfile.ZIP_DEFLATED)
    assert refusal(extract_zip, bomb, out, max_bytes=10**9) == "archive_too_large"
    assert (
        refusal(extract_zip, archive_of(tmp_path / "c.zip", ("a", bytes(100))), out, max_bytes=99)
        == "archive_too_large"
    )
    twice = archive_of(tmp_path / "d.zip", ("a", b"1"), ("A", b"2"))
    assert refusal(extract_zip, twice, out, max_bytes=99) == "bad_archive"
    both = archive_of(tmp_path / "e.zip", ("f", b"1"), ("f/g", b"2"))
    assert refusal(extract_zip, both, out, max_bytes=99) == "bad_archive"
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert refusal(extract_zip, tmp_path / "l.zip", out, max_bytes=99) == "bad_archive"
    # The directory of the archive lies about the size of an entry.
    raw = archive_of(tmp_path / "z.zip", ("a", b"x" * 1000)).read_bytes()
    (tmp_path / "z.zip").write_bytes(
        raw.replace(struct.pack("<II", 1000, 1000), struct.pack("<II", 1000, 10))
    )
    assert refusal(extract_zip, tmp_path / "z.zip", out, max_bytes=99) == "bad_archive"


def test_archive_of_honest_files(tmp_path) -> None:
    path = archive_of(
        tmp_path / "x.zip", ("a/b.txt", b"1"), ("c.bin", bytes(3000)), method=zipfile.ZIP_DEFLATED
    )
    (tmp_path / "out").mkdir()
    assert extract_zip(path, tmp_path / "out", max_bytes=10**6) == ["a/b.txt", "c.bin"]
    assert (tmp_path / "out" / "c.bin").read_bytes() == bytes(3000)


@pytest.mark.parametrize(
    ("name", "content", "suffix", "documents"),
    [
        ("a.txt", "Ünï — text\n".encode(), ".txt", None),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "two"}\n', ".jsonl", 2),
        ("noname", b'{"text": "one"}', ".jsonl", 1),
    ],
)
def test_corpora(tmp_path, name, content, suffix, documents) -> None:
    (tmp_path / "c").write_bytes(content)
    assert check_corpus(tmp_path / "c", name, "text") == (suffix, documents)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.txt", b"", "corpus_empty"),
        ("a.txt", b" \n\n", "corpus_empty"),
        ("a.txt", b"\xff\xfe\x00", "wrong_file_type"),
        ("a.txt", b"a\0b", "wrong_file_type"),
        ("a.txt", b"PK\x03\x04....", "wrong_file_type"),
        ("a.txt", pickle.dumps({"a": 1}), "pickle_refused"),
        ("a.parquet", b"PAR1xxxxPAR1", "bad_corpus_file"),
        ("a.parquet", b"text", "wrong_file_type"),
        ("a.parquet", b"PAR1" + bytes(50), "bad_corpus_file"),
        ("a.jsonl", b'{"text": 1}', "no_text_field"),
        ("a.jsonl", b'{"id": "x"}', "no_text_field"),
        ("a.jsonl", b"[1]", "no_text_field"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "bad_corpus_file"),
        ("a.jsonl", b"[" * 100_000, "bad_corpus_file"),
    ],
)
def test_no_corpora(tmp_path, name, content, code) -> None:
    (tmp_path / "c").write_bytes(content)
    assert refusal(check_corpus, tmp_path / "c", name, "text") == code


def test_parquet_corpora(tmp_path) -> None:
    path = tmp_path / "c"
    pq.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert check_corpus(path, "c.parquet", "text") == (".parquet", 2)
    assert refusal(check_corpus, path, "c.parquet", "n") == "no_text_field"
    pq.write_table(pa.table({"text": ["", None]}), path)
    assert refusal(check_corpus, path, "c.parquet", "text") == "corpus_empty"


NUMBER = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**53, 2**63, -1, 0.5, True, None, "8", [8]]))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "Q4", None, 3]),
        "shape": st.one_of(st.lists(NUMBER, max_size=4), NUMBER),
        "data_offsets": st.one_of(st.lists(NUMBER, max_size=3), NUMBER),
    }
)


@FUZZ
@given(st.dictionaries(st.text(max_size=6), st.one_of(ENTRY, NUMBER), max_size=4), st.binary(max_size=48))
def test_any_header_is_sound_or_refused(tmp_path, header, data) -> None:
    """What passes here, the real library reads with the same names, types and shapes."""
    path = tensors_file(tmp_path / "x.safetensors", header, data)
    with contextlib.suppress(MicroscopeError):
        found = check_safetensors(path)
        read_by_the_library(path, found)


def read_by_the_library(path: Path, found: dict) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(found)
        for name, (_, shape) in found.items():
            assert tuple(file.get_slice(name).get_shape()) == shape


SEEDS: dict[str, bytes] = {}


def seeds(folder: Path) -> dict[str, bytes]:
    """One sound file of each kind, to be damaged."""
    if not SEEDS:
        save_file({"a": torch.zeros(3, 2), "b": torch.ones(4)}, folder / "a.safetensors")
        pq.write_table(pa.table({"text": ["one", "two"] * 20}), folder / "a.parquet")
        np.savez(folder / "a.npz", W=np.zeros(5))
        (folder / "a.json").write_text('{"k": [1, {"x": "y"}]}')
        archive_of(folder / "a.zip", ("x/y", b"12345" * 30), ("z", b""), method=zipfile.ZIP_DEFLATED)
        for path in folder.glob("a.*"):
            SEEDS[path.suffix] = path.read_bytes()
    return SEEDS


@FUZZ
@given(
    st.sampled_from([".safetensors", ".parquet", ".npz", ".json", ".zip"]),
    st.integers(0, 2**32),
    st.binary(max_size=12),
)
def test_damaged_files_never_crash_a_check(tmp_path, suffix, seed, noise) -> None:
    rng = random.Random(seed)
    data = bytearray(seeds(tmp_path)[suffix])
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[place:place] = noise
            case 1:
                del data[place : place + rng.randrange(1, 20)]
            case 2:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case _:
                data = data[: max(place, 1)]
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(data)
    with contextlib.suppress(MicroscopeError):
        if suffix == ".zip":
            with tempfile.TemporaryDirectory(dir=tmp_path) as out:
                extract_zip(path, Path(out), max_bytes=10**6)
        else:
            check_file(path, path.name)
            check_corpus(path, path.name, "text")
