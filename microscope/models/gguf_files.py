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
from microscope.quarantine.gguf import GgufHeader, check_gguf

_SLACK = 1.05  # how much larger than the weights in the file a model may be


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
    header = check_gguf(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    target = cache_dir() / "gguf" / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        _convert(file, work, header)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and its result is the same
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path, header: GgufHeader) -> None:
    # Here, because many only ask for the cache's place.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        _check_size(AutoConfig.from_pretrained(file.parent, **where), header, file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **where
        )
        model, told = loaded
        _check_complete(told, file.name)
    except (MicroscopeError, MemoryError, ImportError):
        raise
    except Exception as error:
        # The readers believe what the file says, and stumble over it in every way there is.
        reason = str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
        raise MicroscopeError(
            "bad_model_file",
            f"{file.name} cannot be read as a model: {reason}",
            "Its settings may not suit its weights, or its type may not be supported: convert it again.",
        ) from error
    # The weights are plain floats now; what says otherwise would make them unsaveable.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"gguf": file.name, "bytes": file.stat().st_size}))


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
    from transformers import AutoModelForCausalLM

    from microscope.models import memory

    wanted = sum(p.numel() for p in memory.skeleton(AutoModelForCausalLM, config).parameters())
    # Some families keep small tensors that a file does not have, such as biases that are zero.
    if wanted > header.parameters * _SLACK:
        raise MicroscopeError(
            "bad_model_file",
            f"The settings of {name} describe a model of {wanted:,} parameters, and its weights are {header.parameters:,}.",
            "Weights may be missing, or one part of several: download or convert it again.",
        )
