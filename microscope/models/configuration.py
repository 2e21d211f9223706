"""A model's configuration: found, checked for sizes before anything is built, and for what is computed here.

``transformers`` builds what a configuration asks for, however large, passes over settings that a class does
not know, and runs decoders in both directions when told to. So the numbers are read from the JSON first,
and a setting whose function this program does not compute is a refusal by name.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers
from huggingface_hub import constants
from transformers import AutoConfig, PretrainedConfig

from microscope.errors import MicroscopeError
from microscope.models import gguf_files
from microscope.models.families import Family, family_of
from microscope.quarantine.content import is_pointer
from microscope.quarantine.documents import parse_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SETTINGS = (
    *("config.json", "generation_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_CONFIG_LIMIT = 16 * 2**20
# Sizes under any of their names, and the largest that is believed; far above every published model.
MAX_BLOCKS = 4096
_LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), MAX_BLOCKS),
    **dict.fromkeys(("hidden_size", "n_embd"), 2**20),
    **dict.fromkeys(("intermediate_size", "n_inner"), 2**24),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 2**16),
    **dict.fromkeys(("vocab_size", "type_vocab_size"), 2**27),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 2**31),
}
# Numbers that a row is divided by, or that angles are powers of.
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Rotations that change with the length of the sequence, so that a row depends on how many follow it.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def read_config(reference: str, revision: str | None = None) -> tuple[str, PretrainedConfig]:
    """Where ``from_pretrained`` finds the model, and its configuration; reads no weights.

    Raises:
        MicroscopeError: ``unknown_model``, ``bad_model_file``, ``wrong_file_type``, ``unsupported_family``
            or ``unsupported_configuration``.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        source = str(gguf_files.converted_folder(path))
    elif path.is_dir():
        _check_file(path, reference)
        source = str(path)
    elif _HUB_ID.fullmatch(reference) and not reference.endswith(".gguf"):
        source = reference
    else:
        raise MicroscopeError(
            "unknown_model",
            f"There is no model at '{reference}'.",
            "Give a Hub id (owner/name), a folder, or a .gguf file.",
        )
    options: dict[str, Any] = {"revision": revision, "local_files_only": is_offline(source)}
    try:
        settings, _ = PretrainedConfig.get_config_dict(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if source == reference and not path.exists():
            raise MicroscopeError(
                "unknown_model",
                f"The model '{reference}' was not found"
                + (
                    ", and the Hub cannot be reached."
                    if options["local_files_only"]
                    else f": {first_line(error)}"
                ),
                "Check the id and the network; private models need HF_TOKEN. A folder or .gguf file works offline.",
            ) from error
        raise _unreadable(reference, first_line(error)) from error
    check_sizes(settings, reference)
    model_type = settings.get("model_type")
    if isinstance(model_type, str):
        family_of(model_type)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # whatever a class of transformers makes of values it does not expect
        raise _unreadable(reference, first_line(error)) from error
    check_computed(config, family_of(config.model_type), reference)
    # How outputs are packed is for this program to say; it is no part of the function.
    config.return_dict, config.output_hidden_states = True, False
    return source, config


def check_sizes(settings: dict[str, Any], reference: str) -> None:
    """Refuse numbers that no model has, before a class of ``transformers`` makes lists and modules of them.

    Args:
        settings: ``config.json`` as it stands.
        reference: the model as it was named.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    for name, largest in _LARGEST.items():
        value = settings.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise MicroscopeError(
                "bad_model_file",
                f"The configuration of {reference} has {name} {str(value)[:40]}, which is no whole number "
                f"from 1 to {largest:,}.",
                "Nothing was built. Take the configuration that belongs to the weights.",
            )


def check_computed(config: Any, family: Family, reference: str) -> None:
    """Refuse settings under which the model is another function than the one computed here.

    Raises:
        MicroscopeError: ``unsupported_configuration``.
    """

    def refuse(setting: str, what: str) -> MicroscopeError:
        return MicroscopeError(
            "unsupported_configuration",
            f"The configuration of {reference} sets {setting}: {what}.",
            "Use a model without it; its numbers would be those of another function.",
        )

    if family.causal:
        if getattr(config, "is_causal", True) is False:
            raise refuse("is_causal to false", "a decoder that sees both ways is not supported")
        if getattr(config, "use_bidirectional_attention", None):
            raise refuse(
                "use_bidirectional_attention",
                "a text encoder that sees both ways is not supported as a decoder",
            )
    else:
        if config.is_decoder:
            raise refuse("is_decoder", "an encoder that sees one way is not supported")
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):
            raise refuse(
                f"position_embedding_type to '{kind}'", "only learned absolute positions are computed"
            )
    numbers = [(name, getattr(config, name, None)) for name in _POSITIVE]
    numbers += [("rope_theta", rope.get("rope_theta")) for rope in rotations(config)]
    for name, value in numbers:
        if value is not None and not 0 < value < float("inf"):
            raise refuse(f"{name} to {value}", "it must be a positive number")
    if getattr(config, "add_cross_attention", False):
        raise refuse("add_cross_attention", "there is nothing it could attend to")
    if family.name == "roberta" and config.pad_token_id is None:
        raise refuse("pad_token_id to null", "positions of RoBERTa are counted from it")
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        known = _LAYER_TYPES if family.layer_kinds else {"full_attention"}
        if len(kinds) != config.num_hidden_layers or not set(kinds) <= known:
            found = ", ".join(sorted(set(map(str, kinds))))[:80]
            raise refuse(
                "layer_types",
                f"{len(kinds)} kinds of attention ({found}) where {config.num_hidden_layers} of "
                f"{' or '.join(sorted(known))} are understood",
            )
        if "sliding_attention" in kinds and not config.sliding_window:
            raise refuse("layer_types", "blocks with a sliding window, but no sliding_window")
    own = getattr(config, "architectures", None) or []
    if getattr(config, "auto_map", None) and own and not any(hasattr(transformers, str(n)) for n in own):
        raise refuse(
            f"auto_map for {str(own[0])[:60]}", "the model needs code of its own, which is never run"
        )


def positions_of(config: Any, family: Family) -> int:
    """Longest sequence, in tokens, for which every position is defined and independent of what follows.

    RoBERTa's positions begin behind that of padding. Rotations that change beyond a length count up to it:
    under ``longrope`` and ``dynamic`` a longer sequence changes the rows of all its tokens.
    """
    stated = int(config.max_position_embeddings)
    if family.name == "roberta":
        return stated - int(config.pad_token_id) - 1
    limits = [stated]
    for rope in rotations(config):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = (
                rope.get("original_max_position_embeddings") if rope["rope_type"] == "longrope" else None
            )
            limits.append(int(original or stated))
    return min(limits)


def rotations(config: Any) -> list[dict[str, Any]]:
    """Parameters of the rotary positions: one table, or one for each kind of block (Gemma-3)."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found or not found:
        return [found]
    return [table for table in found.values() if isinstance(table, dict)]


def is_offline(source: str) -> bool:
    """Whether a model that is no folder can only come from the cache."""
    return not Path(source).is_dir() and not _hub_reachable()


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line; its kind when it says nothing."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _check_file(folder: Path, reference: str) -> None:
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            hint = "It holds an adapter: bring it in with `microscope patch import` and name its base model."
        elif any(folder.glob("*.gguf")):
            hint = f"Give the file itself: {sorted(folder.glob('*.gguf'))[0].name}."
        else:
            hint = "It must contain config.json and safetensors weights."
        raise MicroscopeError("unknown_model", f"The folder {reference} holds no model.", hint)
    if file.stat().st_size > _CONFIG_LIMIT:
        raise _unreadable(reference, f"config.json has more than {_CONFIG_LIMIT // 2**20} MB")
    for name in _SETTINGS:
        settings = folder / name
        if settings.is_file() and is_pointer(settings):
            raise pointer_refused(name, reference)
        if settings.is_file() and settings.stat().st_size <= _CONFIG_LIMIT:
            # Libraries take for granted that these are objects, and descend into them without end.
            try:
                parse_json(
                    settings.read_bytes(), f"{name} of {reference}", code="bad_model_file", strict=False
                )
            except MicroscopeError as error:
                raise MicroscopeError(
                    error.code,
                    error.message,
                    "It must be one JSON object in UTF-8, without a byte order mark: save or download it again.",
                ) from error


def pointer_refused(name: str, reference: str) -> MicroscopeError:
    """What is raised for a Git LFS pointer."""
    return MicroscopeError(
        "bad_model_file",
        f"{name} of {reference} is a Git LFS pointer, not the file itself.",
        "Run `git lfs pull` in the folder, or download the model again.",
    )


def _unreadable(reference: str, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "bad_model_file",
        f"The configuration of {reference} cannot be read: {reason}",
        "Take the configuration that belongs to the weights.",
    )


def _hub_reachable() -> bool:
    """False when there is plainly no way to the Hub, so that a cached model loads at once and a typo fails at once."""
    if os.environ.get("HF_HUB_OFFLINE") or any(
        os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")
    ):
        return not os.environ.get("HF_HUB_OFFLINE")
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
