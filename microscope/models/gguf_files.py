"""GGUF files become ordinary model folders once, and load in a second from then on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from microscope.errors import MicroscopeError
from microscope.models.gguf_parts import join, parts_of
from microscope.models.gguf_settings import check_kind, check_settings, check_tensors
from microscope.quarantine.content import is_pointer
from microscope.quarantine.gguf import GgufHeader, check_model, joined, read_gguf

_SOURCE = "source.json"
# Raised when files are refused that were converted before: what was kept of them is made again.
_CHECKED = 2
_SLACK = 1.05  # how much larger than the weights in the file a model may be


def cache_dir() -> Path:
    """Where converted models are kept: ``MICROSCOPE_CACHE_DIR`` or the user's cache folder."""
    root = os.environ.get("MICROSCOPE_CACHE_DIR")
    return (
        Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "microscope"
    )


def converted_folder(file: Path) -> Path:
    """A model folder with the dequantised weights and the tokenizer of a GGUF file.

    Converted on first use and kept under :func:`cache_dir`, keyed by the file's content; of a file that is
    refused nothing is kept.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_model_file``, ``unsupported_family`` or ``model_too_big``.
    """
    parts = parts_of(file)
    for part in parts:
        if is_pointer(part):
            raise MicroscopeError(
                "bad_model_file",
                f"{part.name} is a Git LFS pointer, not the file itself.",
                "Run `git lfs pull`, or download the file again.",
            )
    header = joined([read_gguf(part) for part in parts], file.name)
    target = cache_dir() / "gguf" / _digest(parts)
    if _is_checked(target):
        return target
    if len(parts) > 1:
        header.metadata.pop("split.count", None)
    check_kind(header, file.name)
    check_model(header, file.name)
    _check_memory(header, file.name)
    shutil.rmtree(target, ignore_errors=True)  # of a version that did not look for lost weights
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        if len(parts) > 1:
            _convert_joined(parts, work, header)
        else:
            _convert(file, work, header, file.name)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and its result is the same
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _digest(parts: list[Path]) -> str:
    digest = hashlib.sha256()
    if len(parts) == 1:  # as it always was
        with parts[0].open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    for part in parts:
        with part.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _convert_joined(parts: list[Path], folder: Path, header: GgufHeader) -> None:
    """Convert a model of several files by way of a file of all, which is not kept."""
    need, free = sum(part.stat().st_size for part in parts), shutil.disk_usage(folder).free
    if need > free:
        raise MicroscopeError(
            "model_too_big",
            f"Joining the {len(parts)} parts of {parts[0].name} needs {need / 1e9:.1f} GB of disk, and "
            f"{free / 1e9:.1f} GB are free in {folder.parent}.",
            "Make room, or set MICROSCOPE_CACHE_DIR to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        whole = Path(place) / "whole.gguf"
        join(parts, whole)
        _convert(whole, folder, header, parts[0].name)


@contextmanager
def _names_made_once() -> Iterator[None]:
    """Within it, the table of an architecture's tensor names is made once, not for every module of a model."""
    import gguf

    real = gguf.get_tensor_name_map
    setattr(gguf, "get_tensor_name_map", functools.cache(real))  # noqa: B010
    try:
        yield
    finally:
        setattr(gguf, "get_tensor_name_map", real)  # noqa: B010


@_names_made_once()
def _convert(file: Path, folder: Path, header: GgufHeader, name: str) -> None:
    # Imported here: most callers only ask where the cache is.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(file.parent, **where)
        check_settings(header, config, name)
        _check_size(config, header, name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **where
        )
        model, told = loaded
        _check_complete(told, name)
        _check_read(model, told, header, name)
    except (MicroscopeError, MemoryError, ImportError):
        raise
    except Exception as error:
        # The readers believe what the file says, and stumble over it in every way there is.
        reason = str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
        raise MicroscopeError(
            "bad_model_file",
            f"{name} cannot be read as a model: {reason}",
            "Its settings may not suit its weights, or its type may not be supported: convert it again.",
        ) from error
    # The weights are plain floats now; what says otherwise would make them unsaveable.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = {"gguf": name, "bytes": file.stat().st_size, "checked": _CHECKED}
    (folder / _SOURCE).write_text(json.dumps(about))


def _is_checked(folder: Path) -> bool:
    try:
        checked: int = json.loads((folder / _SOURCE).read_text(encoding="utf-8")).get("checked", 0)
        return checked >= _CHECKED
    except (OSError, ValueError, TypeError):
        return False


def _check_memory(header: GgufHeader, name: str) -> None:
    need, free = 8 * header.parameters, psutil.virtual_memory().available  # float32, read and written
    if need > free:
        raise MicroscopeError(
            "model_too_big",
            f"Converting {name} ({header.parameters / 1e9:.2f} billion weights) needs {need / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free.",
            "Use a smaller model or a machine with more memory.",
        )


def _check_read(model: Any, told: dict[str, Any], header: GgufHeader, name: str) -> None:
    """Whether every tensor of the file became a weight, and all of them are numbers."""
    from microscope.models import memory
    from microscope.models.checkpoint import check_loaded
    from microscope.models.families import declared_family
    from microscope.models.structure import outline

    skeleton = memory.skeleton(type(model), model.config)
    check_loaded(model, skeleton, declared_family(model.config.model_type) or outline(model), told, name)
    check_tensors(header, model, name)


def _check_complete(told: dict[str, Any], name: str) -> None:
    """Whether every weight of the model came from the file: the library fills the others with random numbers."""
    lacking = sorted({*told["missing_keys"], *(str(entry[0]) for entry in told["mismatched_keys"])})
    if lacking:
        raise MicroscopeError(
            "bad_model_file",
            f"{name} has no weights for {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''} ({len(lacking)} in all).",
            "Weights may be missing, or one part of several: download or convert it again.",
        )


def _check_size(config: Any, header: GgufHeader, name: str) -> None:
    """Whether the model that the settings describe is as large as the weights: it is built before they are read."""
    from microscope.models import memory
    from microscope.models.kinds import kind_of

    wanted = memory.count_parameters(kind_of(config, name).build, config)
    # Some families keep small tensors that a file does not have, such as biases that are zero.
    if wanted > header.parameters * _SLACK:
        raise MicroscopeError(
            "bad_model_file",
            f"The settings of {name} describe a model of {wanted:,} parameters, and its weights are {header.parameters:,}.",
            "Weights may be missing, or one part of several: download or convert it again.",
        )
