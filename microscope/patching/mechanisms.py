"""The ways in which edits act: bases for kinds of edits.

An edit adds to the residual stream behind a block (:class:`ActivationKind`, :class:`DirectionKind` and
:class:`ReconstructionKind`, by what it reads there), or stands for changed weights: low-rank changes of modules
(:class:`ModulesKind`), or the removal of a direction from all that is written to the stream
(:class:`WritersKind`).

A kind that acts on the stream gives its arithmetic as the static method ``change``. The live path, the hooks of
whole batches and the loader of a runtime bundle all run it, the last one from its source: it may use nothing but
its arguments and what it imports itself. Leading axes are rows, or batch and positions.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import textwrap
import types
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from microscope.errors import MicroscopeError
from microscope.params.edit_kinds import EditKind, Mechanism
from microscope.params.sites import SiteKind
from microscope.params.targets import NO_CONSTANT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from microscope.params import Edit, ExportTarget, ModelTraits
    from microscope.params.targets import Judged, WeightForm
    from microscope.patching.adapters import LowRank, LowRankAdapter
    from microscope.sae import Codes, SparseAutoencoder


class StreamKind(EditKind, frozen=True):
    """Adds something to the residual stream behind a block. As weights it can only be fitted."""

    acts: Mechanism = "site"

    sites: ClassVar[tuple[SiteKind, ...]] = ("resid_post",)
    # What a bundle has to bring along for it.
    reads: ClassVar[Literal["activation", "direction", "reconstruction"]]
    # Why no weights do the same, and what would.
    why_fitted: ClassVar[tuple[str, str]]
    change: ClassVar[Callable[..., Tensor]]

    @abstractmethod
    def delta(self, edit: Edit, sae: SparseAutoencoder, x: Tensor, codes: Codes | None) -> Tensor:
        """What an edit adds, wherever it acts.

        Args:
            edit: of this kind.
            sae: the autoencoder it names.
            x: unpatched stream ``[rows, d]`` in float32.
            codes: what the autoencoder encodes ``x`` to, where that is known.

        Returns:
            ``[rows, d]``.
        """

    def encodes(self, sae: SparseAutoencoder) -> bool:
        """Whether an edit computes all activations of the autoencoder, which are then worth caching."""
        return False

    def check(self) -> None:
        """Raise :class:`TypeError` when a part is left out, or ``change`` cannot be moved into a loader."""
        super().check()
        change = inspect.getattr_static(type(self), "change")
        plain = change.__func__ if isinstance(change, staticmethod) else None
        if not isinstance(plain, types.FunctionType) or plain.__name__ != "change":
            raise TypeError("its change is no static method that is written as 'def change(…)'")
        if plain.__defaults__ or plain.__kwdefaults__:
            raise TypeError("its change has defaults, which nothing would ever replace: write them inside")
        outside = [*plain.__code__.co_freevars, *_globals(plain.__code__)]
        if outside:
            raise TypeError(f"its change uses '{outside[0]}' from outside: import or define it inside")

    def source(self) -> str:
        """``change`` as the function ``change_<name>`` of a bundle's loader.

        Raises:
            MicroscopeError: ``source_missing`` where Python has only compiled code of it.
        """
        try:
            lines = textwrap.dedent(inspect.getsource(self.change)).splitlines()
        except OSError as error:
            raise MicroscopeError(
                "source_missing",
                f"A bundle brings the source of '{self.name}' along, which is not installed here.",
                f"Install {self.package or 'this program'} with its .py files.",
            ) from error
        body = lines[next(i for i, line in enumerate(lines) if line.startswith("def ")) :]
        return "\n".join(body).replace("def change(", f"def change_{self.name}(", 1)

    def constant(self, edit: Edit, sae: SparseAutoencoder) -> Tensor:
        """What it adds whatever the stream is, ``[d]``: asked only where its form in weights is a bias."""
        raise NotImplementedError

    def identity(self, edit: Edit) -> dict[str, Any]:
        """All fields that say where, with what and how much."""
        names = ("site", "feature", "strength", "unit", "unit_value", "positions", "enabled")
        return {name: getattr(edit, name) for name in names}

    def form_in(self, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """No weights do what it does."""
        return "fitted"

    def judge(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
        """A low-rank update stands in for it, except in a control vector."""
        return NO_CONSTANT if target == "control_vector" else ("approximate", *self.why_fitted)


class ActivationKind(StreamKind, frozen=True):
    """Sets a feature's activation f to g(f): adds ``(g(f) − f)·d``, with d the feature's decoder row."""

    refers_to: Literal["feature"] = "feature"

    reads = "activation"
    measured = True
    why_fitted = (
        "The edit acts only where its feature fires, which weights cannot decide; a low-rank update is fitted to it.",
        "The runtime bundle is exact.",
    )

    @staticmethod
    @abstractmethod
    def change(f: Tensor, amount: float) -> Tensor:
        """``g(f) − f`` of activations ``[…]``; ``amount`` is the strength in raw units."""

    def delta(self, edit: Edit, sae: SparseAutoencoder, x: Tensor, codes: Codes | None) -> Tensor:
        """The change of the activation times the decoder row, ``[rows, d]``."""
        from microscope.patching.apply import feature_values

        f = sae.feature(x, edit.index) if codes is None else feature_values(codes, edit.index)
        return self.change(f, self.amount(edit))[:, None] * sae.output_gain(x) * sae.W_dec[edit.index]

    def encodes(self, sae: SparseAutoencoder) -> bool:
        """Where latents compete, the activation of one takes those of all."""
        from microscope.sae import IndependentLatents

        return not isinstance(sae, IndependentLatents)


class DirectionKind(StreamKind, frozen=True):
    """Changes the stream along a feature's direction d̂ (its decoder row at length 1), whether or not it fires."""

    refers_to: Literal["feature"] = "feature"

    reads = "direction"
    measured = True

    @staticmethod
    @abstractmethod
    def change(x: Tensor, unit: Tensor, amount: float) -> Tensor:
        """What is added to streams ``[…, d]``; ``unit`` is d̂ ``[d]``, ``amount`` the strength in raw units."""

    def delta(self, edit: Edit, sae: SparseAutoencoder, x: Tensor, codes: Codes | None) -> Tensor:
        """The change along the direction, ``[rows, d]``."""
        row = sae.W_dec[edit.index]
        return self.change(x, row / row.norm(), self.amount(edit))


class ReconstructionKind(StreamKind, frozen=True):
    """Uses an SAE's whole reconstruction of the stream."""

    refers_to: Literal["sae"] = "sae"

    reads = "reconstruction"

    @staticmethod
    @abstractmethod
    def change(x: Tensor, reconstruction: Tensor, amount: float) -> Tensor:
        """What is added to streams ``[…, d]``."""

    def delta(self, edit: Edit, sae: SparseAutoencoder, x: Tensor, codes: Codes | None) -> Tensor:
        """The change, ``[rows, d]``."""
        return self.change(x, sae.decode(sae.encode(x) if codes is None else codes, x), self.amount(edit))

    def encodes(self, sae: SparseAutoencoder) -> bool:
        """A reconstruction takes all activations."""
        return True

    def identity(self, edit: Edit) -> dict[str, Any]:
        """All fields that say where, with what and how much."""
        return {**super().identity(edit), "sae": edit.sae}


class ModulesKind(EditKind, frozen=True):
    """Adds ``B(A·x)`` to what modules compute from x, for factors A and B of low rank."""

    acts: Mechanism = "modules"

    @abstractmethod
    def factors(self, edit: Edit, adapters: Mapping[str, LowRankAdapter]) -> dict[str, LowRank]:
        """Factors by module path; the edit's strength is applied to them outside.

        Raises:
            MicroscopeError: when they are not at hand.
        """


class WritersKind(EditKind, frozen=True):
    """Removes a direction from the embedding and from all that blocks add; several remove their span."""

    acts: Mechanism = "writers"

    sites: ClassVar[tuple[SiteKind, ...]] = ("resid_post", "resid_mid", "attn_out", "mlp_out")

    @abstractmethod
    def direction(self, edit: Edit, sae: SparseAutoencoder) -> Tensor:
        """The unit direction, ``[d]`` in float32."""


def _globals(code: types.CodeType) -> Iterator[str]:
    """Names of its module that a function, or one within it, uses."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL" and not hasattr(builtins, instruction.argval):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals(inner)
