"""The residual stream in what modules are called with and in what they return: both differ between families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def stream_of(args: Args, kwargs: Kwargs) -> Tensor:
    """What a block is called on: its first argument, by place or by name."""
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor), "a block is called on its stream"
    return found


def with_stream(args: Args, kwargs: Kwargs, x: Tensor) -> tuple[Args, Kwargs]:
    """The same arguments with another stream."""
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})


def first_tensor(output: Any) -> Tensor:
    """The stream, or what is added to it, in what a module returns: all of it, or the first of several."""
    found = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(found, Tensor), "a module returns its stream first"
    return found


def map_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output with a change of that."""
    if isinstance(output, tuple | list):
        return type(output)((change(output[0]), *output[1:]))
    return change(output)
