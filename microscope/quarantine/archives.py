"""Zip archives of strangers: nothing leaves the folder, nothing is larger than it says."""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from microscope.errors import MicroscopeError
from microscope.progress import SILENT, Progress

MAX_ENTRIES = 100_000
MAX_RATIO = 200  # uncompressed over compressed, of one entry above a megabyte
_CHUNK = 1 << 20
_MAX_NAME = 500
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_DIRECTORY = 32 * 2**20  # bytes of the list of entries, which is read whole
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# What zipfile and the decompressors raise over damaged bytes.
BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, struct.error, IndexError),
)


def extract_zip(path: Path, folder: Path, *, max_bytes: int, progress: Progress = SILENT) -> list[str]:
    """Unpack an archive into an empty folder; returns the names of the files.

    Every entry is counted while it is unpacked: what the directory of the archive says is not believed.

    Raises:
        MicroscopeError: ``bad_archive`` or ``archive_too_large``.
    """
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked(archive, max_bytes)
            total = sum(info.file_size for info in entries)
            done = 0
            with progress.phase("unpack", total, "bytes"):
                for info in entries:
                    target = folder / info.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.resolve().is_relative_to(folder.resolve()):
                        raise _bad(f"'{info.filename[:80]}' lies outside")
                    done += _unpack(archive, info, target)
                    progress.advance(done)
            return [info.filename for info in entries]
    except BROKEN as error:
        raise _bad(str(error) or type(error).__name__) from error
    except OSError as error:
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            raise _bad("a file and a folder have the same name") from error
        if error.errno == errno.EINVAL:  # a seek to a place no file has
            raise _bad("it names places outside itself") from error
        raise


def check_directory(path: Path) -> None:
    """How long the list of entries is, which every library reads into memory before it looks at one of them.

    Raises:
        MicroscopeError: ``bad_archive`` or ``archive_too_large``.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - 2**16 - 22))  # behind it stands a comment of up to 2¹⁶ bytes
        start, tail = stream.tell(), stream.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < 22:
            raise _bad("it has no list of entries")
        entries, length = struct.unpack_from("<HI", tail, at + 10)
        if start + at >= 20:
            stream.seek(start + at - 20)
            locator = stream.read(20)
            if locator[:4] == _LOCATOR_64:
                stream.seek(min(int.from_bytes(locator[8:16], "little"), size))
                record = stream.read(56)
                if len(record) == 56 and record[:4] == _END_64:
                    entries, length = struct.unpack_from("<QQ", record, 32)
    if entries > MAX_ENTRIES:
        raise MicroscopeError(
            "archive_too_large", f"The archive has {entries} files; {MAX_ENTRIES} are allowed."
        )
    if length > min(_MAX_DIRECTORY, size):
        raise MicroscopeError(
            "archive_too_large",
            f"The archive's list of files has {length} bytes; {_MAX_DIRECTORY} are allowed.",
        )


def _bad(reason: str) -> MicroscopeError:
    return MicroscopeError("bad_archive", f"The archive is not sound: {reason}.", "Export it again.")


def _checked(archive: zipfile.ZipFile, max_bytes: int) -> list[zipfile.ZipInfo]:
    entries = [info for info in archive.infolist() if not info.is_dir()]
    if len(entries) > MAX_ENTRIES:
        raise MicroscopeError(
            "archive_too_large", f"The archive has {len(entries)} files; {MAX_ENTRIES} are allowed."
        )
    seen: set[str] = set()
    for info in entries:
        name, parts = info.filename, PurePosixPath(info.filename).parts
        kind = stat.S_IFMT(info.external_attr >> 16)
        if (
            not parts
            or name.startswith("/")
            or "\\" in name
            or ":" in name
            or len(name) > _MAX_NAME
            or any(part in ("..", ".") or part.startswith(".") for part in name.split("/"))
            or any(ord(letter) < 32 for letter in name)
        ):
            raise _bad(f"'{name[:80]}' is no name a file can have")
        if kind not in (0, stat.S_IFREG):
            raise _bad(f"'{name[:80]}' is a link or a device")
        if info.flag_bits & 1:
            raise _bad("it is encrypted")
        if info.compress_type not in METHODS:  # others take gigabytes for the smallest entry, if it says so
            raise _bad(f"'{name[:80]}' is packed by method {info.compress_type}; only deflate is read")
        if name.casefold() in seen:
            raise _bad(f"'{name[:80]}' occurs twice")
        seen.add(name.casefold())
        if info.file_size > 2**20 and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise MicroscopeError("archive_too_large", f"'{name[:80]}' unpacks to {info.file_size} bytes.")
    total = sum(info.file_size for info in entries)
    if total > max_bytes:
        raise MicroscopeError(
            "archive_too_large", f"The archive unpacks to {total} bytes; {max_bytes} are allowed."
        )
    return entries


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> int:
    done = 0
    with archive.open(info) as source, target.open("xb") as sink:
        while data := source.read(_CHUNK):
            done += len(data)
            if done > info.file_size:
                raise _bad(f"'{info.filename[:80]}' is longer than the archive says")
            sink.write(data)
    return done
