"""The one error that carries a stable code, a sentence, and a remedy.

Everything a person can cause (a wrong path, a layer that does not exist, a model that does not fit)
is raised as :class:`MicroscopeError`. The command line prints it, a job stores it, the API returns it
and the browser shows it, each from the same three fields.
"""

from __future__ import annotations


class MicroscopeError(Exception):
    """A problem the user can act on.

    Args:
        code: stable snake_case identifier, e.g. ``layer_out_of_range``.
        message: one sentence that says what failed, with the numbers involved.
        hint: one sentence that says what to do about it; empty when nothing can be done.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class Cancelled(Exception):
    """Raised inside a job when its cancel flag is seen; never an error to the user."""
