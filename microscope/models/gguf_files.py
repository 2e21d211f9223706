"""GGUF files become ordinary model folders once, and load in a second from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

from microscope.errors import MicroscopeError
from microscope.models.families import family_of
from microscope.quarantine.content import is_pointer
from microscope.quarantine.gguf import GgufHeader, check_gguf

_SOURCE = "source.json"
# Architectures that are called otherwise in ``transformers``; of Gemma-3 a file has the text part only.
_MODEL_TYPES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox"}
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
    if is_pointer(file):
        raise MicroscopeError(
            "bad_model_file",
            f"{file.name} is a Git LFS pointer, not the file itself.",
            "Run `git lfs pull`, or download the file again.",
        )
    header = check_gguf(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    target = cache_dir() / "gguf" / digest
    if _is_checked(target):
        return target
    _check_whole(header, file.name)
    shutil.rmtree(target, ignore_errors=True)  # of a version that did not look for lost weights
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
    # Imported here: most callers only ask where the cache is.
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
        _check_read(model, told, header, file.name)
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
    about = {"gguf": file.name, "bytes": file.stat().st_size, "checked": True}
    (folder / _SOURCE).write_text(json.dumps(about))


def _is_checked(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _SOURCE).read_text(encoding="utf-8")).get("checked"))
    except (OSError, ValueError):
        return False


def _check_whole(header: GgufHeader, name: str) -> None:
    """Whether the file is one whole model of a supported kind, without what its conversion would lose."""

    def refuse(reason: str, hint: str = "Take the safetensors files of the model.") -> MicroscopeError:
        return MicroscopeError("bad_model_file", f"{name} cannot be read as a model: {reason}.", hint)

    metadata = header.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise refuse(f"it holds something else ({str(kind)[:40]})")
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise refuse(
            f"it is one of {parts} parts of a split model",
            "Join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf.",
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise refuse("it does not say of which architecture it is (general.architecture)")
    family_of(_MODEL_TYPES.get(architecture, architecture))
    scaling = sorted(key for key in metadata if key.startswith(f"{architecture}.rope.scaling."))
    if scaling and metadata.get(f"{architecture}.rope.scaling.type") != "none":
        raise refuse(f"its rotary positions are scaled ({scaling[0]}), which conversion would lose")
    factors = [tensor for tensor in header.tensors if tensor.startswith("rope_")]
    if factors:
        raise refuse(f"its rotary positions have factors ({factors[0]}), which conversion would lose")
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
    from microscope.models.checkpoint import check_loaded

    check_loaded(model, family_of(model.config.model_type), told, name)
    weights = sum(1 for _ in model.parameters())  # tied ones once
    if weights != len(header.tensors):
        raise MicroscopeError(
            "bad_model_file",
            f"{name} has {len(header.tensors)} tensors, and the model made of it {weights} weights.",
            "Some would be lost or made up. Take the safetensors files of the model.",
        )


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
