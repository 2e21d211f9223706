"""The header of a safetensors file, parsed by ourselves before any library maps the file into memory.

Format: eight bytes with the header's length, a JSON object of name → dtype, shape, span, and the data
(huggingface/safetensors README). Libraries differ in what they tolerate; here everything is exact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.quarantine.documents import parse_json

MAX_HEADER = 8 * 2**20
MAX_TENSORS = 20_000
_MAX_RANK = 8
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


def check_safetensors(path: Path, name: str | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check a whole header against the file.

    Returns:
        dtype and shape of every tensor, by name.

    Raises:
        MicroscopeError: ``bad_safetensors`` with what is wrong.
    """
    shown = name or path.name
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _bad(shown, f"it has {size} bytes; the shortest has 10")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER or length < 2 or 8 + length > size:
            raise _bad(
                shown, f"its header would have {length} bytes; the file has {size}, {MAX_HEADER} are allowed"
            )
        raw = stream.read(length)
    if raw[:1] != b"{":
        raise _bad(shown, "its header is no JSON object")
    header = parse_json(raw, shown, code="bad_safetensors")
    return _check_entries(header, size - 8 - length, shown)


def _bad(name: str, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "bad_safetensors", f"{name} is no sound safetensors file: {reason}.", "Save or upload it again."
    )


def _check_entries(
    header: dict[str, Any], data_bytes: int, name: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(name, "its metadata are not texts")
    if len(header) > MAX_TENSORS:
        raise _bad(name, f"it has {len(header)} tensors; {MAX_TENSORS} are allowed")
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int, str]] = []
    for tensor, entry in header.items():
        dtype, shape, (start, stop) = _entry(tensor, entry, name)
        wanted = math.prod(shape) * _ITEM_BYTES[dtype]
        if stop - start != wanted:
            raise _bad(name, f"{tensor[:80]} has {stop - start} bytes, its shape needs {wanted}")
        spans.append((start, stop, tensor))
        found[tensor] = (dtype, shape)
    place = 0
    for start, stop, tensor in sorted(spans):
        if start != place:
            raise _bad(
                name,
                f"{tensor[:80]} {'overlaps the tensor before' if start < place else 'leaves a gap before it'}",
            )
        place = stop
    if place != data_bytes:
        raise _bad(name, f"its tensors have {place} bytes, the file has {data_bytes}: it is cut or padded")
    return found


def _entry(tensor: str, entry: Any, name: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(name, f"the entry of {tensor[:80]} is incomplete or has more than it should")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _bad(name, f"{tensor[:80]} has the unknown type {str(dtype)[:20]}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_count(side) for side in shape):
        raise _bad(name, f"{tensor[:80]} has no sound shape")
    if (
        not isinstance(span, list)
        or len(span) != 2
        or not all(_count(side) for side in span)
        or span[0] > span[1]
    ):
        raise _bad(name, f"{tensor[:80]} has no sound place")
    return dtype, tuple(shape), (span[0], span[1])


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48
