"""GGUF files become ordinary model folders once, and load in a second from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from microscope.errors import MicroscopeError

_MAGIC = b"GGUF"


def cache_dir() -> Path:
    """Where converted models are kept: ``MICROSCOPE_CACHE_DIR`` or the user's cache folder."""
    root = os.environ.get("MICROSCOPE_CACHE_DIR")
    return (
        Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "microscope"
    )


def converted_folder(file: Path) -> Path:
    """A model folder with the dequantised weights and the tokenizer of a GGUF file.

    Converted on first use and kept under :func:`cache_dir`, keyed by the file's content.

    Raises:
        MicroscopeError: ``wrong_file_type`` or ``bad_model_file``.
    """
    with file.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise MicroscopeError(
                "wrong_file_type",
                f"{file.name} is not a GGUF file.",
                "Give a .gguf file, a model folder or a Hub id.",
            )
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    target = cache_dir() / "gguf" / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        _convert(file, work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and its result is the same
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path) -> None:
    # Here, because many only ask for the cache's place.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise MicroscopeError(
            "bad_model_file",
            f"{file.name} cannot be read as a model: {error}",
            "The file may be truncated or of an unsupported type.",
        ) from error
    # The weights are plain floats now; what says otherwise would make them unsaveable.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"gguf": file.name, "bytes": file.stat().st_size}))
