"""What the product says when it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from microscope.errors import MicroscopeError


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> MicroscopeError:
    """The error of a call that must be refused."""
    with pytest.raises(MicroscopeError) as caught:
        call(*arguments, **options)
    return caught.value


def refused(code: str, call: Callable[..., object], *arguments: object, **options: object) -> MicroscopeError:
    """The same, for this reason."""
    error = refusal(call, *arguments, **options)
    assert error.code == code, error
    return error
