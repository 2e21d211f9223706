"""LoRA directories in PEFT's layout, read and written without PEFT.

Of what is read, everything understood is checked and all else refused. What is written keeps to what every loader
of such directories understands: one rank, ``lora_alpha`` equal to it (so the scale is one whatever the loader makes
of it), no biases, no patterns, no variants.

Layout after PEFT's checkpoint documentation: ``adapter_config.json`` and ``adapter_model.safetensors`` with
``base_model.model.<module>.lora_A.weight`` ``[r, in]`` and ``.lora_B.weight`` ``[out, r]``; embeddings have
``lora_embedding_A`` ``[r, vocabulary]`` and ``_B`` ``[d, r]``. The delta is scaled by α/r, or α/√r when rank
stabilised; patterns give single modules their own r and α.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.patching.adapters import LowRank, LowRankAdapter, check_factors, same_rank
from microscope.patching.peft_init import as_plain, check_initialisation, moves_weights
from microscope.patching.peft_patterns import is_target, missing_targets, pattern_value
from microscope.quarantine.content import is_pointer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_EMBEDDINGS = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings", "decoder")
# Settings that change what the adapter computes in ways a low-rank delta is not.
_VARIANTS = {
    "use_dora": "DoRA, which rescales the weights",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors (BD-LoRA)",
    "lora_bias": "biases in its B matrices",
    "modules_to_save": "whole modules beside the low-rank ones",
    "trainable_token_indices": "retrained tokens",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "an activation by tokens (aLoRA)",
    "target_parameters": "parameters outside modules",
    "megatron_config": "Megatron's parallel layers",
    "arrow_config": "routing between adapters (Arrow)",
    "kasa_config": "singular values of the weights (KaSA)",
    "monteclora_config": "sampled factors (MonteCLoRA)",
    "velora_config": "compressed activations (VeLoRA)",
    "ensure_weight_tying": "one adapter for embedding and head",
    "enable_lora": "parts of merged projections",
}
# Settings that are honoured, or that say nothing of what the adapter computes.
_UNDERSTOOD = {
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *(
        "fan_in_fan_out",
        "lora_dropout",
        "inference_mode",
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
    ),
    *(
        "peft_version",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "unsloth_fixed",
        "merge_weights",
    ),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # read by the way of initialising
}
_CONFIG_LIMIT = 1 << 20
_AGAIN = "Save the adapter again with PEFT."


def write_peft(
    folder: Path,
    deltas: Mapping[str, LowRank],
    base_name: str,
    *,
    embedding: Mapping[str, LowRank] | None = None,
    transposed: bool = False,
) -> int:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into a folder.

    Args:
        folder: where.
        deltas: of linear modules, by path.
        base_name: the model they are for, as loaders ask for it.
        embedding: delta of the embedding by its path: A ``[r, vocabulary]``, B ``[d, r]``.
        transposed: whether the model stores weights as ``[in, out]``, like GPT-2.

    Returns:
        The rank.
    """
    embedding = embedding or {}
    even = same_rank({**deltas, **embedding})
    rank = len(next(iter(even.values())).a)
    tensors = {}
    for path, delta in even.items():
        names = (_EMBEDDING_A, _EMBEDDING_B) if path in embedding else (_A, _B)
        for name, tensor in zip(names, delta, strict=True):
            tensors[f"{_PREFIX}{path}{name}"] = tensor.detach().float().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "inference_mode": True,
        # full paths, so that no module of the same name elsewhere is adapted
        "target_modules": [*sorted(deltas), *embedding],
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return rank


def read_peft(folder: str | Path, model: Any = None) -> LowRankAdapter:
    """Read and check an adapter; scales are folded into B.

    Args:
        folder: the directory.
        model: the Hugging Face model it is for; when given, modules and shapes are checked against it, and
            what the adapter took out of its weights when it was made is taken into account.

    Raises:
        MicroscopeError: ``no_adapter``, ``pickle_refused``, ``bad_adapter``, ``unsupported_adapter``,
            ``no_such_module`` or ``wrong_adapter_shape``.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _without_copies(_read_tensors(folder), model)
    factors, scales = {}, {}
    for name, a in tensors.items():
        if not name.endswith(_A):
            continue
        path = name.removesuffix(_A)
        b = tensors.get(path + _B)
        if b is None:
            raise MicroscopeError("bad_adapter", f"The adapter has an A but no B for '{path}'.", _AGAIN)
        factors[path] = LowRank(a.float(), b.float())
    odd = next((n for n in tensors if not n.endswith((_A, _B)) or n[: -len(_B)] not in factors), None)
    if odd is not None:
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter has a tensor '{odd}', which is not a low-rank change of a linear module.",
            "Adapters of embeddings, biases and whole modules are not supported: merge it into a checkpoint.",
        )
    check_factors(factors)
    _check_ranks(config, factors)
    _check_targets(config, factors)
    for path, (a, b) in factors.items():
        scales[path] = _scale(config, path, len(a))
        factors[path] = LowRank(a, scales[path] * b)
    if model is not None:
        LowRankAdapter(factors).check(model)
        _check_complete(config, factors, model)
        if moves_weights(config):
            factors = as_plain(factors, scales, config, model)
            check_factors(factors)
    return LowRankAdapter(factors, "", {"base_model": str(config.get("base_model_name_or_path") or "")})


def read_config(folder: Path) -> Mapping[str, Any]:
    """``adapter_config.json``, refused when it asks for more than a low-rank change.

    Raises:
        MicroscopeError: ``no_adapter``, ``bad_adapter`` or ``unsupported_adapter``.
    """
    file = folder / CONFIG
    _check_fetched(file)
    if not file.is_file():
        raise MicroscopeError("no_adapter", f"There is no {CONFIG}.", "Give the directory PEFT saved.")
    if file.stat().st_size > _CONFIG_LIMIT:
        raise MicroscopeError("bad_adapter", f"{CONFIG} is larger than {_CONFIG_LIMIT} bytes.", _AGAIN)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MicroscopeError("bad_adapter", f"{CONFIG} is no JSON: {error}.", _AGAIN) from error
    if not isinstance(config, dict):
        raise MicroscopeError("bad_adapter", f"{CONFIG} is no JSON object.", _AGAIN)
    if config.get("peft_type") != "LORA":
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter is of the type {config.get('peft_type')!r}; only LORA is supported.",
            "PEFT can convert some types to LoRA.",
        )
    if config.get("bias", "none") != "none":
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter trains biases ({config['bias']}).",
            "Merge it into a checkpoint instead.",
        )
    for setting, what in _VARIANTS.items():
        if config.get(setting):
            raise MicroscopeError(
                "unsupported_adapter", f"The adapter uses {what}.", "Merge it into a checkpoint instead."
            )
    strange = [name for name, value in config.items() if value and name not in _UNDERSTOOD]
    if strange:
        raise MicroscopeError(
            "unsupported_adapter",
            f"{CONFIG} has the setting '{strange[0][:60]}', which is not known here and may change what the adapter does.",
            "Merge it into a checkpoint instead.",
        )
    check_initialisation(config)
    _number(config, "r")
    _number(config, "lora_alpha")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise MicroscopeError("bad_adapter", f"{name} of {CONFIG} is no object.", _AGAIN)
        for key in pattern:
            _number(pattern, key)
    return config


def _check_fetched(file: Path) -> None:
    if file.is_file() and is_pointer(file):
        raise MicroscopeError(
            "bad_adapter",
            f"{file.name} is a Git LFS pointer, not the file itself.",
            "Run `git lfs pull` in the folder, or download the adapter again.",
        )


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise MicroscopeError(
            "bad_adapter", f"{name} of {CONFIG} is {value!r}, not a positive number.", _AGAIN
        )
    return float(value)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    _check_fetched(file)
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
        raise MicroscopeError("bad_adapter", f"{WEIGHTS} is no safetensors file: {error}", _AGAIN) from error
    whole = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if whole is not None:
        raise MicroscopeError(
            "bad_adapter",
            f"'{whole}' in {WEIGHTS} holds {tensors[whole].dtype}, not floating-point numbers.",
            "A quantised adapter has to be saved again in float16, bfloat16 or float32.",
        )
    strange = [name for name in names if not name.startswith(_PREFIX)]
    if strange:
        raise MicroscopeError(
            "bad_adapter", f"The tensor '{strange[0]}' has no name PEFT gives.", f"Names start with {_PREFIX}"
        )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _without_copies(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Without the embedding and head that PEFT saves along when one is a target, if they are the model's own.

    Without a model they are left for the second look.
    """
    modules = {} if model is None else dict(model.named_modules())
    kept = {}
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight").removesuffix(".base_layer")
        whole = name.endswith(".weight") and not name.endswith((_A, _B)) and ".lora_" not in name
        if not whole or not path.endswith(_EMBEDDINGS):
            kept[name] = tensor
        elif model is not None:
            own = getattr(modules.get(path), "weight", None)
            if (
                own is None
                or own.shape != tensor.shape
                or not bool((own.cpu() == tensor.to(own.dtype)).all())
            ):
                raise MicroscopeError(
                    "unsupported_adapter",
                    f"The adapter brings a '{path}' of its own that is not the model's.",
                    "Merge it into a checkpoint instead.",
                )
    return kept


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """α/r, or α/√r when rank stabilised, with the module's own α where a pattern names it."""
    alpha = pattern_value(
        config.get("alpha_pattern") or {}, path, float(config["lora_alpha"]), "alpha_pattern"
    )
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _check_ranks(config: Mapping[str, Any], factors: Mapping[str, LowRank]) -> None:
    for path, (a, _) in factors.items():
        wanted = pattern_value(config.get("rank_pattern") or {}, path, float(config["r"]), "rank_pattern")
        if len(a) != wanted:
            raise MicroscopeError(
                "bad_adapter",
                f"'{path}' has rank {len(a)}, but {CONFIG} says {wanted:g}.",
                "The two files do not belong together.",
            )


def _check_targets(config: Mapping[str, Any], factors: Mapping[str, LowRank]) -> None:
    """PEFT passes over factors of modules that the configuration does not mean."""
    passed_over = [path for path in factors if not is_target(config, path)]
    if passed_over:
        raise MicroscopeError(
            "bad_adapter",
            f"The adapter has a change of '{passed_over[0]}', which {CONFIG} does not name as a target.",
            "The two files do not belong together.",
        )


def _check_complete(config: Mapping[str, Any], factors: Mapping[str, LowRank], model: Any) -> None:
    """PEFT begins anew where factors are missing."""
    missing = missing_targets(config, model, factors)
    if missing:
        raise MicroscopeError(
            "bad_adapter",
            f"{CONFIG} names '{missing[0]}' as a target, and {WEIGHTS} has no change of it "
            f"({len(missing)} modules are missing).",
            "The adapter is incomplete, or made for another model: save it again.",
        )
