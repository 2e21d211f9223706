"""The activation at a site in what its module reads or returns, and another one in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from microscope.models.families import Tap
from microscope.models.stream import first_tensor, map_first

Shape = Sequence[int]


def activation_in(held: Any, tap: Tap, shape: Shape) -> Tensor:
    """The activation ``[batch, positions, width]`` in what a module reads or returns.

    Some modules see all rows of a batch as ``[batch·positions, width]``.

    Args:
        held: a tensor, or several things of which it is the first.
        tap: which site it is; its factor is multiplied in.
        shape: batch and positions.
    """
    value = first_tensor(held)
    value = value if value.dim() == 3 else value.reshape(*shape, -1)
    return value if tap.scale == 1 else tap.scale * value


def with_activation(held: Any, tap: Tap, x: Tensor) -> Any:
    """The same with another activation ``[batch, positions, width]``, divided by the factor that follows."""
    x = x if tap.scale == 1 else x / tap.scale
    return map_first(held, lambda value: x.reshape(value.shape))
