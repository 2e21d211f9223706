"""Ways to keep activations on disk and to read them in random order."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.child import Measured, Turn
from microscope.activations import Recording, ShuffledRows
from microscope.activations.forward import SiteRows
from microscope.activations.manifest import CorpusRecord, Manifest, ModelRecord, SiteRecord, SplitRecord
from microscope.activations.writer import ROW_GROUP, SHARD_ROWS, RecordingWriter, Rows

SITE = "resid_post.15"
_DOCUMENT = 1024


def random_rows(rows: int, width: int) -> np.ndarray:
    """Activations of no model, ``[rows, width]`` float16: their values change no time."""
    block = np.random.default_rng(0).standard_normal((min(rows, ROW_GROUP), width), np.float32)
    return np.tile(block.astype(np.float16), (-(-rows // len(block)), 1))[:rows]


# --- writing --------------------------------------------------------------------------------------------


def write_recording(folder: Path, values: np.ndarray) -> None:
    """Write rows as a recording, a document at a time, as tracing does after its forward passes."""
    width = values.shape[1]
    model = ModelRecord(
        reference="none",
        revision=None,
        fingerprint="none",
        family="llama",
        n_layers=30,
        d_model=width,
        vocab_size=100,
        dtype="float32",
        tokenizer_hash="",
    )
    manifest = Manifest(
        model=model,
        corpus=CorpusRecord(description="none"),
        sites=[SiteRecord(site=SITE, column=SITE, norm_column=f"{SITE}.norm", width=width)],
        context_length=128,
        outlier_factor=8.0,
        held_out_share=0.0,
        train=SplitRecord(),
        held_out=SplitRecord(),
    )
    folder.mkdir(parents=True)
    writer = RecordingWriter(folder, manifest)
    norm = np.full(_DOCUMENT, float(width) ** 0.5, np.float32)
    for number, first in enumerate(range(0, len(values), _DOCUMENT)):
        part = values[first : first + _DOCUMENT]
        count = len(part)
        position = np.arange(count, dtype=np.int32)
        stored = SiteRows(part, norm[:count], np.zeros(count, bool))
        rows = Rows(
            np.full_like(position, number), position, position, np.zeros(count, np.uint8), {SITE: stored}
        )
        if not writer.has_thresholds:
            writer.set_thresholds([rows])
        writer.add("train", rows)
        if writer.pending_rows() >= SHARD_ROWS:
            writer.flush(number + 1)
    manifest.complete = True
    writer.flush(len(values) // _DOCUMENT)


def write_lists(path: Path, values: np.ndarray) -> None:
    """Write rows as a Parquet column of fixed-size lists, the usual layout."""
    kind = pa.list_(pa.field("item", pa.float16(), nullable=False), values.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    pq.write_table(
        pa.table({"activation": column}),
        path,
        row_group_size=ROW_GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )


def write_array(path: Path, values: np.ndarray) -> None:
    """Write rows as they are in memory."""
    with path.open("wb") as stream:
        np.save(stream, values)


_WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "recording": write_recording,
    "lists": write_lists,
    "array": write_array,
}


def writing(*, folder: str, layout: str, rows: int, width: int) -> Turn:
    """Write all rows anew, into ``folder``."""
    values = random_rows(rows, width)

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            started = time.perf_counter()
            _WRITERS[layout](Path(place) / "rows", values)
            return Measured(time.perf_counter() - started, values.nbytes / 1e6)

    return turn


# --- reading --------------------------------------------------------------------------------------------


def _from_recording(path: Path, size: int, buffer: int) -> Iterator[torch.Tensor]:
    recording = Recording(path)
    stream = ShuffledRows(recording, recording.site(SITE), seed=0, buffer_bytes=buffer)
    return itertools.islice(stream.batches(size), stream.rows_per_epoch // size)


def _from_array(path: Path, size: int, _: int) -> Iterator[torch.Tensor]:
    values = np.load(path, mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(values))
    for first in range(0, len(order) - size + 1, size):
        yield torch.from_numpy(values[order[first : first + size]])


def _from_lists(path: Path, size: int, buffer: int) -> Iterator[torch.Tensor]:
    """Row groups in random order into a buffer, whose rows are given out in random order."""
    random = np.random.default_rng(0)
    file = pq.ParquetFile(path, memory_map=True)
    held: list[np.ndarray] = []
    for number, group in enumerate(random.permutation(file.num_row_groups)):
        column = file.read_row_group(int(group), use_threads=False).column(0).combine_chunks()
        held.append(column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1))
        last = number == file.num_row_groups - 1
        if last or sum(part.nbytes for part in held) + held[-1].nbytes > buffer:
            rows = np.concatenate(held)
            order = random.permutation(len(rows))
            whole = len(rows) // size * size
            for first in range(0, whole, size):
                yield torch.from_numpy(rows[order[first : first + size]])
            held = [rows[order[whole:]]]


_READERS: dict[str, Callable[[Path, int, int], Iterator[torch.Tensor]]] = {
    "recording": _from_recording,
    "array": _from_array,
    "lists": _from_lists,
}


def reading(*, folder: str, layout: str, rows: int, width: int, size: int, buffer: int) -> Turn:
    """Read all rows once as shuffled float16 batches, opening the files included."""
    place = tempfile.TemporaryDirectory(dir=folder)  # goes with the last reference to it
    path = Path(place.name) / "rows"
    _WRITERS[layout](path, random_rows(rows, width))

    def turn() -> Measured:
        assert Path(place.name).exists()
        started = time.perf_counter()
        payload = sum(batch.nbytes for batch in _READERS[layout](path, size, buffer))
        return Measured(time.perf_counter() - started, payload / 1e6)

    return turn
