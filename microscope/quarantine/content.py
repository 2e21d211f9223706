"""What a file is, by its first bytes."""

from __future__ import annotations

from pathlib import Path

from microscope.errors import MicroscopeError

_POINTER = b"version https://git-lfs"
# What people really have under the wrong name, and what must never be opened.
_MAGIC = {
    b"PK\x03\x04": "a zip archive (or a PyTorch file)",
    b"PK\x05\x06": "a zip archive",
    b"PK\x07\x08": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF model",
    b"\x93NUMPY": "a NumPy array",
}
_PICKLE = "a Python pickle"
# Protocols 2 to 5 start with PROTO; 0 and 1 with the opcode of a container, a global or a number.
_OLD_PICKLE = (
    *(b"(dp0\n", b"(lp0\n", b"(ip0\n", b"}q\x00", b"]q\x00", b"\x8a\x0al\xfc\x9cF\xf9"),
    *(
        b"c__builtin__\n",
        b"cbuiltins\n",
        b"cposix\n",
        b"cnt\n",
        b"cos\n",
        b"csubprocess\n",
        b"ctorch",
        b"ccollections\n",
    ),
)


def foreign_content(head: bytes) -> str | None:
    """What a file is if it is nothing that is ever read here; None when it may be all right.

    Args:
        head: its first bytes, at least 16 of them if there are so many.
    """
    # A safetensors header of 0x80 + 256·n bytes begins as a pickle does; but then its ninth byte is a brace.
    tensors = head[8:9] == b"{" and head[4:8] == bytes(4)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and not tensors:
        return _PICKLE
    if head.startswith(_OLD_PICKLE):
        return _PICKLE
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves where the real one was not fetched."""
    return read_head(path, len(_POINTER)) == _POINTER


def read_head(path: Path, length: int = 64) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as stream:
        return stream.read(length)


def refuse_foreign(path: Path, name: str, accepted: str) -> None:
    """Refuse archives, pickles, programs and pictures, whatever their name.

    Raises:
        MicroscopeError: ``pickle_refused`` or ``wrong_file_type``.
    """
    what = foreign_content(read_head(path))
    if what is None:
        return
    if what == _PICKLE or (
        what.startswith("a zip") and Path(name).suffix.lower() in (".pt", ".pth", ".bin", ".ckpt")
    ):
        raise MicroscopeError(
            "pickle_refused",
            f"{name} is a pickle, which can run code when it is opened.",
            "Convert it on your own machine (microscope import --allow-pickle) and upload the result.",
        )
    raise MicroscopeError("wrong_file_type", f"{name} is {what}.", accepted)
