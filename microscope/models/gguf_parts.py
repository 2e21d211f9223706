"""Models split over several GGUF files, as ``llama-gguf-split`` names them: ``NAME-00001-of-00003.gguf``."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

from microscope.errors import MicroscopeError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 1000
_CHUNK = 16 * 2**20


def parts_of(file: Path) -> list[Path]:
    """All files of the model that a file is of, in order: itself alone where it is no part of several.

    Raises:
        MicroscopeError: ``bad_model_file`` naming the parts that are missing.
    """
    match = _PART.fullmatch(file.name)
    if match is None or not 1 < int(match["count"]) <= _MOST_PARTS:
        return [file]
    count = int(match["count"])
    parts = [file.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise MicroscopeError(
            "bad_model_file",
            f"{file.name} is one of {count} parts of a model, and {len(missing)} are not beside it: {shown}.",
            "Download the missing parts into the same folder; any one of them may then be named.",
        )
    return parts


def join(parts: Sequence[Path], target: Path) -> None:
    """Write the model of several parts as one file: settings of the first, tensors of all.

    The parts were checked (``read_gguf``), so that names occur once and places are within the files.
    """
    # Imported here: most callers only ask which files there are.
    from gguf import GGUFReader

    readers = [GGUFReader(part) for part in parts]
    settings = [
        b"".join(part.tobytes() for part in field.parts)
        for name, field in readers[0].fields.items()
        if not name.startswith(("GGUF.", "split."))
    ]
    tensors = [
        (part, tensor) for part, reader in zip(parts, readers, strict=True) for tensor in reader.tensors
    ]
    alignment = int(readers[0].alignment)
    listed, place = [], 0
    for _, tensor in tensors:
        name = tensor.name.encode()
        sides = [int(side) for side in tensor.shape]
        listed.append(
            struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
        )
        listed.append(struct.pack("<IQ", int(tensor.tensor_type), place))
        place += -(-int(tensor.n_bytes) // alignment) * alignment
    with target.open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(settings)))
        out.writelines(settings)
        out.writelines(listed)
        for part, tensor in tensors:
            out.write(b"\0" * (-out.tell() % alignment))
            with part.open("rb") as source:
                source.seek(int(tensor.data_offset))
                left = int(tensor.n_bytes)
                while left:
                    data = source.read(min(left, _CHUNK))
                    out.write(data)
                    left -= len(data)
