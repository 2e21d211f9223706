"""Files made to hurt: each is refused in words, within bounded memory and time. Real ones, mutated by the hundred, too.

``HOSTILE_MUTATIONS`` says how many mutations of each kind of file are tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from microscope.errors import MicroscopeError
from microscope.models import load_model
from microscope.quarantine import check_file, check_json, extract_zip
from microscope.quarantine.gguf import check_gguf
from tests.refusals import refusal
from tests.tables import table
from tests.tiny_gguf import made_gguf

MUTATIONS = int(os.environ.get("HOSTILE_MUTATIONS", "300"))
MIB = 2**20


# --- archives, arrays, JSON ---------------------------------------------------------------------------


def test_an_archives_list_of_entries_is_bounded(tmp_path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x")
    raw = bytearray(path.read_bytes())
    end = raw.rfind(b"PK\x05\x06")
    struct.pack_into("<H", raw, end + 8, 0xFFF0)
    struct.pack_into("<I", raw, end + 12, 0x7FFFFFFF)
    path.write_bytes(raw)
    out = tmp_path / "out"
    out.mkdir()
    assert refusal(extract_zip, path, out, max_bytes=10**6).code in ("archive_too_large", "bad_archive")
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    assert refusal(extract_zip, path, out, max_bytes=10**6).code == "bad_archive"
    # A list of four million names: 64-bit counts.
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x06\x06")
    assert at > 0
    struct.pack_into("<QQ", raw, at + 24, 4_000_000, 4_000_000)
    path.write_bytes(raw)
    assert refusal(extract_zip, path, out, max_bytes=10**6).code == "archive_too_large"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_packing_is_refused(tmp_path, method) -> None:
    """Its decoders take as much memory as a file says."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", b"x" * 100)
    assert refusal(extract_zip, path, tmp_path, max_bytes=10**6).code == "bad_archive"


def test_an_array_with_an_endless_header(tmp_path) -> None:
    path = tmp_path / "params.npz"
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 300 * MIB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("W.npy", "w") as entry:
        entry.write(header)
        for _ in range(300):
            entry.write(b" " * MIB)
    assert path.stat().st_size < MIB
    assert refusal(check_file, path, "params.npz").code == "bad_array"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"a":' + "[" * 90 + "]" * 90 + "}",
        '{"a": ' + "9" * 10_000 + "}",
        '{"a": [' + "[]," * 7_000_000 + "[]]}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": "' + "\ud800",
        "[]",
        "null",
        "",
    ],
    ids=["unclosed", "deep", "digits", "many", "nan", "twice", "cut", "list", "null", "empty"],
)
def test_json_that_is_too_much(tmp_path, text) -> None:
    path = tmp_path / "cfg.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert refusal(check_json, path).code == "bad_json"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text",
    ["[]", "null", "5", '"x"', "", "{", '{"a":' * 100_000, '{"a":' + "[" * 900 + "]" * 900 + "}"],
    ids=["list", "null", "number", "text", "empty", "cut", "unclosed", "deep"],
)
def test_settings_of_a_model_that_are_none(model_folders, tmp_path, name, text) -> None:
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    (folder / name).write_text(text)
    error = refusal(load_model, str(folder))
    assert error.code == "bad_model_file"
    assert name in error.message


# --- within limits ------------------------------------------------------------------------------------


def taken_in(path: Path, out: Path, *, memory: int) -> tuple[int, str]:
    """``microscope corpus import`` in a process that the system gives so much memory: status and words."""
    done = subprocess.run(
        [sys.executable, "-m", "microscope", "corpus", "import", "--path", str(path), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_long_text_named_often_is_read_once(tmp_path) -> None:
    """652 bytes that say five gigabytes."""
    path = tmp_path / "x.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["0" * 5 * MIB]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")
    status, said = taken_in(path, tmp_path / "out", memory=600 * MIB)
    assert status == 0, said


def test_what_needs_more_than_is_allowed_is_refused(tmp_path) -> None:
    table, path = pa.table({"text": ["0" * 800 * MIB]}), tmp_path / "x.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)
    del table
    status, said = taken_in(path, tmp_path / "out", memory=600 * MIB)
    assert (status, "(memory_limit)" in said) == (3, True), said
    assert "0.6 GiB" in said
    assert not (tmp_path / "out").exists()


# --- real files, mutated ------------------------------------------------------------------------------


def seeds(folder: Path) -> dict[str, bytes]:
    """A sound file of each kind."""
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(4)}, folder / "a.safetensors")
    pq.write_table(table(), folder / "a.parquet", data_page_size=500)
    np.savez(folder / "a.npz", W=np.zeros(5))
    (folder / "a.json").write_text(json.dumps({"k": [1, {"x": "y", "z": [1.5, None, True]}]}))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/y", b"12345" * 30)
        archive.writestr("z", b"")
    made_gguf(folder / "a.gguf")
    return {path.suffix: path.read_bytes() for path in folder.glob("a.*")}


def mutated(data: bytes, rng: random.Random, header: int) -> bytes:
    """A few changes, most of them where the headers are: at the start and at the end."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        near = rng.randrange(3)
        place = rng.randrange(max(len(out), 1))
        if near == 0:
            place = rng.randrange(min(header, len(out)) or 1)
        elif near == 1:
            place = max(0, len(out) - 1 - rng.randrange(min(header, len(out)) or 1))
        match rng.randrange(7):
            case 0:
                out[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 2:
                out[place:place] = rng.randbytes(rng.randrange(1, 12))
            case 3:
                del out[place : place + rng.randrange(1, 40)]
            case 4:
                out[place : place + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32, 2**63, 2**64 - 1]))
            case 5:
                out[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
            case _:
                out = out[: max(place, 1)]
    return bytes(out)


TRY = """
import re, sys, pathlib
from tests.unit.test_hostile_files import try_mutations
try_mutations(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
# of this program alone: getrusage also counts the test runner's memory, which a child has until it runs another
print(int(re.findall(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[0]) // 1024)
"""


def try_mutations(folder: Path, count: int) -> None:
    """Run by :func:`test_mutated_files` in a process of its own, which may die of one."""
    import pyarrow as pa

    sound = seeds(folder)
    for number in range(count * len(sound)):
        suffix = sorted(sound)[number % len(sound)]
        path = folder / f"mutated{suffix}"
        path.write_bytes(mutated(sound[suffix], random.Random(number), 2500))
        try:
            if suffix == ".zip":
                out = folder / f"out{number}"
                out.mkdir()
                extract_zip(path, out, max_bytes=10**6)
            elif suffix == ".gguf":
                check_gguf(path)
                gguf.GGUFReader(path)  # what passed, the real library can walk
            else:
                check_file(path, path.name)
                if suffix == ".parquet":
                    # Damaged data may be refused while they are read, by the one who reads them.
                    with contextlib.suppress(pa.ArrowException, OSError, ValueError, OverflowError):
                        for batch in pq.ParquetFile(path, buffer_size=MIB).iter_batches(
                            256, columns=["text"]
                        ):
                            batch.to_pylist()
        except MicroscopeError:
            pass
        except Exception as error:
            raise AssertionError(f"mutation {number}{suffix}: {type(error).__name__}: {error}") from error


@pytest.mark.timeout(1800)
def test_mutated_files(tmp_path) -> None:
    """Hundreds of each kind: nothing but refusals, no crash of a library, no memory to speak of."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path), str(MUTATIONS)],
        capture_output=True,
        text=True,
        # As much as a job gets that takes files in, and no more.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4096 * MIB, 4096 * MIB)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 1500, "MiB at most"
