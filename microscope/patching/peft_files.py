"""LoRA directories in PEFT's layout, read without PEFT: what is understood is checked, all else is refused.

Layout after PEFT's checkpoint documentation: ``adapter_config.json`` and ``adapter_model.safetensors`` with
``base_model.model.<module>.lora_A.weight`` ``[r, in]`` and ``.lora_B.weight`` ``[out, r]``; embeddings have
``lora_embedding_A`` ``[r, vocabulary]`` and ``_B`` ``[d, r]``. The delta is scaled by α/r, or α/√r when rank
stabilised; patterns give single modules their own r and α.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.patching.adapters import LowRank, LowRankAdapter, check_factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings that change what the adapter computes in ways a low-rank delta is not.
_VARIANTS = {
    "use_dora": "DoRA, which rescales the weights",
    "use_qalora": "QALoRA",
    "lora_bias": "biases in its B matrices",
    "modules_to_save": "whole modules beside the low-rank ones",
    "trainable_token_indices": "retrained tokens",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "an activation by tokens (aLoRA)",
    "target_parameters": "parameters outside modules",
}
_CONFIG_LIMIT = 1 << 20
_PLAIN_KEY = re.compile(r"\^?[\w.]+")


def read_peft(folder: str | Path, model: Any = None) -> LowRankAdapter:
    """Read and check an adapter; scales are folded into B.

    Args:
        folder: the directory.
        model: the Hugging Face model it is for; when given, modules and shapes are checked against it.

    Raises:
        MicroscopeError: ``no_adapter``, ``pickle_refused``, ``bad_adapter``, ``unsupported_adapter``,
            ``no_such_module`` or ``wrong_adapter_shape``.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder)
    factors = {}
    for name, a in tensors.items():
        if not name.endswith(_A):
            continue
        path = name.removesuffix(_A)
        b = tensors.get(path + _B)
        if b is None:
            raise MicroscopeError("bad_adapter", f"The adapter has an A but no B for '{path}'.")
        factors[path] = LowRank(a.float(), _scale(config, path, a) * b.float())
    if 2 * len(factors) != len(tensors):
        odd = next(n for n in tensors if not n.endswith((_A, _B)))
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter has a tensor '{odd}', which is not a low-rank change of a linear module.",
            "Adapters of embeddings, biases and whole modules are not supported: merge it into a checkpoint.",
        )
    check_factors(factors)
    _check_ranks(config, factors)
    about = {"base_model": str(config.get("base_model_name_or_path") or "")}
    adapter = LowRankAdapter(factors, "", about)
    if model is not None:
        adapter.check(model)
    return adapter


def read_config(folder: Path) -> Mapping[str, Any]:
    """``adapter_config.json``, refused when it asks for more than a low-rank change.

    Raises:
        MicroscopeError: ``no_adapter``, ``bad_adapter`` or ``unsupported_adapter``.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise MicroscopeError("no_adapter", f"There is no {CONFIG}.", "Give the directory PEFT saved.")
    if file.stat().st_size > _CONFIG_LIMIT:
        raise MicroscopeError("bad_adapter", f"{CONFIG} is larger than {_CONFIG_LIMIT} bytes.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MicroscopeError("bad_adapter", f"{CONFIG} is no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise MicroscopeError("bad_adapter", f"{CONFIG} is no JSON object.")
    if config.get("peft_type") != "LORA":
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter is of the type {config.get('peft_type')!r}; only LORA is supported.",
            "PEFT can convert some types to LoRA.",
        )
    if config.get("bias", "none") != "none":
        raise MicroscopeError("unsupported_adapter", f"The adapter trains biases ({config['bias']}).")
    for setting, what in _VARIANTS.items():
        if config.get(setting):
            raise MicroscopeError(
                "unsupported_adapter", f"The adapter uses {what}.", "Merge it into a checkpoint instead."
            )
    _number(config, "r")
    _number(config, "lora_alpha")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise MicroscopeError("bad_adapter", f"{name} of {CONFIG} is no object.")
        for key in pattern:
            if not _PLAIN_KEY.fullmatch(key):
                raise MicroscopeError(
                    "unsupported_adapter",
                    f"{name} of {CONFIG} has an expression ('{key[:80]}') where names of modules are expected.",
                    "Merge it into a checkpoint instead.",
                )
            _number(pattern, key)
    return config


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise MicroscopeError("bad_adapter", f"{name} of {CONFIG} is {value!r}, not a positive number.")
    return float(value)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").exists():
            raise MicroscopeError(
                "pickle_refused",
                "The adapter's weights are a pickle (adapter_model.bin), which can run code.",
                "Save it again with safe_serialization=True.",
            )
        raise MicroscopeError("no_adapter", f"There is no {WEIGHTS}.", "Give the directory PEFT saved.")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise MicroscopeError("bad_adapter", f"{WEIGHTS} is no safetensors file: {error}") from error
    strange = [name for name in names if not name.startswith(_PREFIX)]
    if strange:
        raise MicroscopeError(
            "bad_adapter", f"The tensor '{strange[0]}' has no name PEFT gives.", f"Names start with {_PREFIX}"
        )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _scale(config: Mapping[str, Any], path: str, a: Tensor) -> float:
    """α/r, or α/√r when rank stabilised, with the module's own α where a pattern names it."""
    alpha = _patterned(config, "alpha_pattern", path, float(config["lora_alpha"]))
    rank = max(len(a), 1)
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _patterned(config: Mapping[str, Any], name: str, path: str, default: float) -> float:
    """A pattern's key names the modules whose path is it or ends in it after a dot."""
    for key, value in (config.get(name) or {}).items():
        plain = key.removeprefix("^")
        if path == plain or (plain == key and path.endswith(f".{key}")):
            return float(value)
    return default


def _check_ranks(config: Mapping[str, Any], factors: Mapping[str, LowRank]) -> None:
    for path, (a, _) in factors.items():
        wanted = _patterned(config, "rank_pattern", path, float(config["r"]))
        if len(a) != wanted:
            raise MicroscopeError(
                "bad_adapter",
                f"'{path}' has rank {len(a)}, but {CONFIG} says {wanted:g}.",
                "The two files do not belong together.",
            )
