"""A model's configuration: found, checked for sizes before anything is built, and for what is computed here.

``transformers`` builds what a configuration asks for, however large, passes over settings that a class does
not know, and runs decoders in both directions when told to. So the numbers are read from the JSON first,
and a setting whose function this program does not compute is a refusal by name.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers
from huggingface_hub import constants
from transformers import AutoConfig, PretrainedConfig

from microscope.errors import MicroscopeError
from microscope.models import gguf_files
from microscope.models.families import Family, declared_family
from microscope.models.kinds import Kind, check_known, kind_of
from microscope.quarantine.content import is_pointer
from microscope.quarantine.documents import parse_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SETTINGS = (
    *("config.json", "generation_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_CONFIG_LIMIT = 16 * 2**20
# Sizes under any of their names, and the largest that is believed; far above every published model. The first
# pattern that fits a whole name counts.
MAX_BLOCKS = 4096
_LARGEST: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), largest)
    for pattern, largest in (
        (r"(num|n)_(\w+_)?(layers?|blocks)|(en|de)coder_layers|depth", MAX_BLOCKS),
        (r"(num|n)_(\w+_)?heads?|(\w+_)?attention_heads|(\w+_)?head_(dim|size)|d_(kv|head)", 2**16),
        (r"(num|n)_(\w+_)?experts?(_per_tok\w*)?|moe_(k|topk|top_k)", 2**16),
        (r"(\w+_)?vocab_size(_\w+)?", 2**27),
        (
            r"(hidden|embed|embedding)_(size|dim)|d_model|n_embd|(\w+_)?(state_size|d_state|rank|conv_kernel)",
            2**20,
        ),
        (
            r"(\w+_)?(intermediate|ffn|inner|ff)_(size|dim)|n_inner|d_ff|ffn_dim|(\w+_)?(size|dim|width)",
            2**24,
        ),
        (r"(\w+_)?(max_\w*position\w*|n_positions|n_ctx|max_seq_len|context_length|seq_length)", 2**31),
    )
)
# What a model cannot be without: nought of it is no model.
_NEEDED = {
    *("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "intermediate_size", "n_inner", "vocab_size"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("n_positions", "n_ctx", "type_vocab_size"),
}
# Numbers that a row is divided by.
_EPSILON = re.compile(r"norm\w*_(eps|epsilon)$")
# Settings under which a causal class's tokens see those that follow them, and the values that say so.
_SEES_BOTH_WAYS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("is_causal", lambda value: value is False),
    ("causal", lambda value: value is False),
    # "vision": tokens of images do, and those of text do not.
    ("use_bidirectional_attention", lambda value: bool(value) and value != "vision"),
    ("attn_type", lambda value: value == "bi"),
)
# Positions are counted from behind that of padding, so that the first ones of the table are never used.
_COUNTED_FROM_PADDING = {
    *(
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "data2vec-text",
        "xmod",
    ),
}
# What stands for the longest sequence of models that have none.
UNBOUNDED = 2**17
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Rotations that change with the length of the sequence, so that a row depends on how many follow it.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def read_config(reference: str, revision: str | None = None) -> tuple[str, Kind]:
    """Where ``from_pretrained`` finds the model, and what its configuration describes; reads no weights.

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
    check_known(settings, reference)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        kind = kind_of(config, reference)
    except MicroscopeError:
        raise
    except Exception as error:  # whatever a class of transformers makes of values it does not expect
        raise _unreadable(reference, first_line(error)) from error
    check_computed(kind.config, declared_family(kind.config.model_type), reference)
    # How outputs are packed is for this program to say; it is no part of the function.
    kind.config.return_dict, kind.config.output_hidden_states = True, False
    return source, kind


def check_sizes(settings: dict[str, Any], reference: str) -> None:
    """Refuse numbers that no model has, before a class of ``transformers`` makes lists and modules of them.

    Args:
        settings: ``config.json`` as it stands, with the settings of a model's parts within it.
        reference: the model as it was named.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            check_sizes(value, reference)
            continue
        largest = next((largest for pattern, largest in _LARGEST if pattern.fullmatch(name)), None)
        if largest is None or value is None:
            continue
        # -1 and 0 stand for none in many configurations, of a head's width where it is stated in parts.
        in_parts = name == "head_dim" and "qk_rope_head_dim" in settings
        least = 1 if name in _NEEDED and not in_parts else -1
        # Where blocks differ, a size is a list with one for each.
        sizes = value if isinstance(value, list) and len(value) <= MAX_BLOCKS else [value]
        for size in sizes:
            if not _is_size(size, min(least, 0) if len(sizes) > 1 else least, largest, name):
                raise MicroscopeError(
                    "bad_model_file",
                    f"The configuration of {reference} has {name} {str(value)[:40]}, which is no whole number "
                    f"from {max(least, 0)} to {largest:,}.",
                    "Nothing was built. Take the configuration that belongs to the weights.",
                )


def _is_size(value: Any, least: int, largest: int, name: str) -> bool:
    """Whether a value is a number that a size may be; what a name only resembles may be of another type."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return name not in _NEEDED
    return least <= value <= largest and (isinstance(value, int) or name not in _NEEDED)


def check_computed(config: Any, family: Family | None, reference: str) -> None:
    """Refuse settings under which the model is another function than the one computed here.

    Args:
        config: that of the model, of a multimodal one that of its text part.
        family: the family that is declared for its type, if there is one.
        reference: the model as it was named.

    Raises:
        MicroscopeError: ``unsupported_configuration``.
    """

    def refuse(setting: str, what: str) -> MicroscopeError:
        return MicroscopeError(
            "unsupported_configuration",
            f"The configuration of {reference} sets {setting}: {what}.",
            "Use a model without it; its numbers would be those of another function.",
        )

    if family is None or family.causal:
        for setting, sees_both_ways in _SEES_BOTH_WAYS:
            value = getattr(config, setting, None)
            if value is not None and sees_both_ways(value):
                raise refuse(
                    f"{setting} to {str(value).lower()}",
                    "a model whose tokens see those that follow them is not supported as a decoder",
                )
    else:
        if config.is_decoder:
            raise refuse("is_decoder", "an encoder that sees one way is not supported")
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):
            raise refuse(
                f"position_embedding_type to '{kind}'", "only learned absolute positions are computed"
            )
    numbers = [(name, value) for name, value in config.to_dict().items() if _EPSILON.search(name)]
    numbers += [("rope_theta", rope.get("rope_theta")) for rope in rotations(config)]
    for name, value in numbers:
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise refuse(f"{name} to {value}", "it must be a positive number")
    if getattr(config, "add_cross_attention", False):
        raise refuse("add_cross_attention", "there is nothing it could attend to")
    if config.model_type in _COUNTED_FROM_PADDING and config.pad_token_id is None:
        raise refuse("pad_token_id to null", "positions of RoBERTa are counted from it")
    _check_layer_types(config, family, refuse)
    own = getattr(config, "architectures", None) or []
    if getattr(config, "auto_map", None) and own and not any(hasattr(transformers, str(n)) for n in own):
        raise refuse(
            f"auto_map for {str(own[0])[:60]}", "the model needs code of its own, which is never run"
        )


def _check_layer_types(
    config: Any, family: Family | None, refuse: Callable[[str, str], MicroscopeError]
) -> None:
    kinds, blocks = getattr(config, "layer_types", None), getattr(config, "num_hidden_layers", None)
    if kinds is None or family is None:  # which kinds others have is for their own classes to say
        return
    known = _LAYER_TYPES if family.layer_kinds else {"full_attention"}
    if len(kinds) != blocks or not set(kinds) <= known:
        found = ", ".join(sorted(set(map(str, kinds))))[:80]
        raise refuse(
            "layer_types",
            f"{len(kinds)} kinds of attention ({found}) where {blocks} of "
            f"{' or '.join(sorted(known))} are understood",
        )
    if "sliding_attention" in kinds and not getattr(config, "sliding_window", True):
        raise refuse("layer_types", "blocks with a sliding window, but no sliding_window")


def positions_of(config: Any, family: Family | None = None) -> int:
    """Longest sequence, in tokens, for which every position is defined and independent of what follows.

    RoBERTa's positions begin behind that of padding. Rotations that change beyond a length count up to it:
    under ``longrope`` and ``dynamic`` a longer sequence changes the rows of all its tokens. Of models without
    a longest sequence (recurrent ones, and those that are told distances only) it is :data:`UNBOUNDED`.
    """
    stated = next((n for n in _stated_positions(config) if isinstance(n, int) and n > 0), UNBOUNDED)
    if config.model_type in _COUNTED_FROM_PADDING:
        return stated - int(config.pad_token_id) - 1
    limits = [stated]
    for rope in rotations(config):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = (
                rope.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                if rope["rope_type"] == "longrope"
                else None
            )
            limits.append(int(original or stated))
    return min(limits)


def _stated_positions(config: Any) -> Iterator[Any]:
    for name in ("max_position_embeddings", "max_seq_len", "context_length", "max_target_positions"):
        with contextlib.suppress(AttributeError):  # some configurations know a name and have no value
            yield getattr(config, name, None)


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
            hint = (
                f"It holds an adapter of {_base_of(folder)}: load that, and bring the adapter in with "
                f"`microscope patch import --path {reference} --model {_base_of(folder)}`."
            )
        elif files := sorted(folder.glob("*.gguf"), key=lambda file: ("mmproj" in file.name, file.name)):
            hint = f"Give the file itself: {files[0].name}."
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


def _base_of(folder: Path) -> str:
    """The model that an adapter says it was made for."""
    try:
        settings = parse_json(
            (folder / "adapter_config.json").read_bytes()[:_CONFIG_LIMIT], "adapter_config.json"
        )
    except MicroscopeError:
        return "BASE_MODEL"
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    return base[:200] if isinstance(base, str) and base else "BASE_MODEL"


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
