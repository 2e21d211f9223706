"""Errors of the machine and of the files a person named, put in words; everything else is a defect."""

from __future__ import annotations

import errno
import re
import sys

from microscope.errors import MicroscopeError

_ENGINE_PACKAGES = {"torch", "transformers", "pyarrow", "safetensors", "numpy", "accelerate", "datasets"}
# Libraries that are not written in Python say the system's number in their text only.
_OS_ERROR = re.compile(r"os error (\d+)")
_SYSTEM_TEXT = {"No space left on device": errno.ENOSPC, "File too large": errno.EFBIG}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SUCH_PLACE = {
    errno.ENOENT: "it does not exist",
    errno.EEXIST: "it exists already",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENXIO: "nothing is there",
}


def in_words(error: BaseException) -> MicroscopeError | None:
    """What went wrong, for a person; None when it is nothing a person can do something about."""
    if isinstance(error, MicroscopeError):
        return error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _ENGINE_PACKAGES:
        return MicroscopeError(
            "engine_missing",
            f"This command needs {error.name}, which is not installed.",
            "Run: pip install 'interpretability-workbench[engine]'",
        )
    text = str(error)
    if isinstance(error, MemoryError):
        return _out_of_memory()
    if isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text):
        return MicroscopeError("out_of_memory", text.split("\n", 1)[0], "Lower the batch size or the width.")
    number = _number(error, text)
    if number is not None:
        path = getattr(error, "filename", None)
        return _of_the_system(number, "" if path is None else str(path))
    cause = error.__cause__ or error.__context__
    # A library that reports its own failure over the system's says less than the system.
    if isinstance(cause, OSError) and _number(cause, str(cause)) in (*_NO_ROOM, errno.EFBIG):
        return in_words(cause)
    return None


def _number(error: BaseException, text: str) -> int | None:
    """The system's number of an error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := _OS_ERROR.search(text):
        return int(found.group(1))
    return next((number for words, number in _SYSTEM_TEXT.items() if words in text), None)


def _of_the_system(number: int, path: str) -> MicroscopeError | None:
    named = f": '{path}'" if path else ""
    if number in _NO_ROOM:
        return MicroscopeError(
            "disk_full", f"The disk is full{named}.", "Free some space; finished parts are kept."
        )
    if number == errno.EFBIG:
        return MicroscopeError(
            "file_limit",
            f"A file would become larger than {_allowed_file()}{named}.",
            "Make less of it, or raise the limit (`ulimit -f`; in the portal WORKBENCH_JOB_FILE_GB).",
        )
    if number in _NOT_ALLOWED:
        what = (
            "is on a disk that may only be read" if number == errno.EROFS else "may not be used by this user"
        )
        return MicroscopeError(
            "not_permitted",
            f"'{path}' {what}." if path else f"A file {what}.",
            "Choose another place, or change its permissions.",
        )
    if number in _NO_SUCH_PLACE and path:
        return MicroscopeError(
            "bad_path", f"'{path}' cannot be used: {_NO_SUCH_PLACE[number]}.", "Check the path."
        )
    if number == errno.EIO:
        return MicroscopeError("disk_error", f"The disk failed{named}.", "Look at the system's log.")
    return None


def _out_of_memory() -> MicroscopeError:
    allowed = _limit("RLIMIT_DATA")
    if allowed is None:
        return MicroscopeError(
            "out_of_memory", "There was not enough memory.", "Lower the batch size or the buffer."
        )
    return MicroscopeError(
        "memory_limit",
        f"More memory was needed than the {allowed / 2**30:.1f} GiB that are allowed.",
        "Give a smaller file, or raise the limit (`ulimit -d`; in the portal WORKBENCH_IMPORT_MEMORY_MB).",
    )


def _allowed_file() -> str:
    allowed = _limit("RLIMIT_FSIZE")
    return "this disk allows" if allowed is None else f"the {allowed / 2**30:.3g} GiB that are allowed"


def _limit(name: str) -> int | None:
    """What the system holds this process to; None where it does not."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrlimit(getattr(resource, name))[0]
    return None if most == resource.RLIM_INFINITY else int(most)
