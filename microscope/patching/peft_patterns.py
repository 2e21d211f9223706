"""Which modules an adapter's configuration means, by the rules of PEFT's ``tuners_utils``.

Expressions come from strangers and can take for ever; each is given a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import regex  # type: ignore[import-untyped]
from torch import nn
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError

_LONGEST = 2000
_AGAIN = "Save the adapter again with PEFT."
_SECONDS = 1.0
# A number behind a name: the block a path lies in. The first one counts.
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def pattern_value(pattern: Mapping[str, Any], path: str, default: float, name: str) -> float:
    """What ``rank_pattern`` or ``alpha_pattern`` says of a module: that of the first key which fits its path.

    A key is a regular expression for the whole path, or for its end behind a dot.

    Raises:
        MicroscopeError: ``bad_adapter`` for an expression that is none or takes too long.
    """
    for key, value in pattern.items():
        if _match(rf"(.*\.)?({key})$", path, name):
            return float(value)
    return default


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether the configuration has PEFT change the module at this path.

    Raises:
        MicroscopeError: ``bad_adapter``.
    """
    excluded = config.get("exclude_modules")
    if excluded and _named(excluded, path, "exclude_modules"):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return _named(targets, path, "target_modules")
    if not isinstance(targets, list) or not _is_names(targets):
        raise MicroscopeError(
            "bad_adapter",
            "adapter_config.json does not say which modules the adapter changes (target_modules).",
            "Save the adapter again with PEFT, which fills it in.",
        )
    if path in targets:
        return True
    return _named(targets, path, "target_modules") and _in_layers(config, path)


def missing_targets(config: Mapping[str, Any], model: Any, found: Iterable[str]) -> list[str]:
    """Linear modules of a model that the configuration means and the adapter has no change of."""
    have = set(found)
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and path not in have and is_target(config, path)
    ]


def _named(names: Any, path: str, setting: str) -> bool:
    if isinstance(names, str):
        return _match(rf"(?:{names})\Z", path, setting)
    if not _is_names(names):
        raise MicroscopeError("bad_adapter", f"{setting} of adapter_config.json is no list of names.", _AGAIN)
    return any(path == name or path.endswith(f".{name}") for name in names)


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    """Whether ``layers_to_transform`` leaves the module in."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    wanted = [layers] if isinstance(layers, int) else layers
    if not isinstance(wanted, list) or not all(isinstance(layer, int) for layer in wanted):
        raise MicroscopeError(
            "bad_adapter", "layers_to_transform of adapter_config.json is no list of numbers.", _AGAIN
        )
    patterns = config.get("layers_pattern") or None
    if patterns is None:
        match = _match(_ANY_LAYER, path, "layers_pattern")
    else:
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not _is_names(listed):
            raise MicroscopeError(
                "bad_adapter", "layers_pattern of adapter_config.json is no list of names.", _AGAIN
            )
        tried = (_match(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.", path, "layers_pattern") for p in listed)
        match = next((found for found in tried if found), None)
    return bool(match) and int(match["idx"]) in wanted


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _match(expression: str, path: str, setting: str) -> Any:
    try:
        if len(expression) > _LONGEST:
            raise ValueError("it is too long")
        return regex.match(expression, path, timeout=_SECONDS)
    except (regex.error, ValueError, TimeoutError, RecursionError, OverflowError) as error:
        raise MicroscopeError(
            "bad_adapter",
            f"{setting} of adapter_config.json has the expression '{expression[:80]}', which cannot be used: {error}.",
            "Name the modules instead.",
        ) from error
