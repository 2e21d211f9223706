"""Which tokens an SAE is for: the others pass through it untouched, wherever it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Rows = TypeVar("Rows", np.ndarray, Tensor)


class Derivation(msgspec.Struct, kw_only=True, frozen=True):
    """How the filter of an SAE whose own files state none was found.

    ``max_norm`` is ``factor`` times ``median_norm``, the median L2 norm of the tokens at the SAE's input
    site in raw units: of a ``recording`` (``name`` is its fingerprint), or of a short ``text`` run through
    a model (``name`` is what the model was called).
    """

    source: Literal["recording", "text"]
    name: str
    factor: float
    median_norm: float

    @property
    def words(self) -> str:
        """The rule in words."""
        where = (
            f"recording {self.name[:12]}" if self.source == "recording" else f"a short text in {self.name}"
        )
        return f"{self.factor:g}× the median norm {self.median_norm:.4g} of {where}"


class TokenFilter(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens an SAE was not trained on, and which therefore pass through it untouched.

    ``max_norm`` is the largest L2 norm, in raw units, of a token that is not an attention sink. Special
    tokens excluded without a ``max_norm`` mean that nobody knows (see :attr:`known`); nothing excluded means
    that the SAE was trained on every token. ``derived`` says how a filter was found that did not come with
    the SAE.
    """

    exclude_special: bool = True
    max_norm: Annotated[float, msgspec.Meta(ge=0)] | None = None
    derived: Derivation | None = None

    @property
    def known(self) -> bool:
        """Whether somebody said which tokens are left out, or that none is."""
        return self.max_norm is not None or not self.exclude_special

    @property
    def leaves_out(self) -> bool:
        """Whether it leaves out anything at all."""
        return self.exclude_special or self.max_norm is not None

    def keep(self, special: Rows, norms: Rows) -> Rows:
        """True for the tokens the SAE is for, ``[rows]``; from which are special and their norms, ``[rows]`` both."""
        kept = ~special if self.exclude_special else special | ~special
        return kept if self.max_norm is None else kept & (norms <= self.max_norm)

    @property
    def words(self) -> str:
        """What is left out, in words: "special tokens, and tokens with a norm above 83.7"."""
        if not self.leaves_out:
            return "nothing: the SAE was trained on every token"
        parts = ["special tokens"] if self.exclude_special else []
        if self.max_norm is not None:
            parts.append(f"tokens with a norm above {self.max_norm:.4g}")
        found = ", and ".join(parts)
        if self.derived is None:
            return found
        return f"{found} ({self.derived.words}; derived, as the SAE came without a token filter)"
