"""What a kind of edit is, and which kinds there are.

Each kind is one object, in a module of its own below :mod:`microscope.patching.kinds` or in a package that
declares it under the entry-point group ``microscope.edits``. It owns everything that distinguishes it:
what an edit of it needs and when it changes nothing, what it computes, which weights do the same, how the
browser offers it. Loading a kind imports no torch; what needs torch imports it when it is called.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from microscope.errors import MicroscopeError
from microscope.params.extensions import Declaration, Registry
from microscope.params.sites import Site, SiteKind

if TYPE_CHECKING:
    from microscope.params.edits import Edit
    from microscope.params.targets import ExportTarget, Judged, WeightForm
    from microscope.params.traits import ModelTraits

GROUP, BUILT_IN = "microscope.edits", "microscope.patching.kinds"
Reference = Literal["feature", "sae", "adapter"]
Mechanism = Literal["site", "modules", "writers"]
MAX_MODULES = 4096
# In a schema: one of the names of the kinds there are, which are not looked for before they are needed.
ANY_KIND = {"x-registry": GROUP}


class Slider(msgspec.Struct, frozen=True, kw_only=True):
    """Range and step of a strength's slider. The number box beside it takes what lies beyond."""

    min: float
    max: float
    step: float = 0.05


class EditKind(Declaration, frozen=True, kw_only=True):
    """One kind of edit: data for command lines, the API and the browser, and methods for everything else.

    Attributes:
        name: what plans call it.
        description: what an edit of it does, in one line.
        title: its name in the browser.
        formula: the same as arithmetic, with α, λ and s for a strength that is a factor and c for an amount;
            f is the feature's activation, d its decoder row, d̂ that at length 1.
        sentence: an edit of it in words, with ``{target}``, ``{site}``, ``{strength}``, ``{unit}`` and
            ``{adapter}`` filled in.
        refers_to: what an edit of it is made from.
        acts: the way it acts: on the residual stream at a ``site``, by low-rank changes of ``modules``, or
            on all that ``writers`` add to the stream. The last two stand for changed weights, so they act
            on every token.
        counts: what strength × unit value is: a feature's ``activation`` or a ``length`` in the stream;
            None when strength is a plain factor, or unused.
        neutral: the strength that changes nothing, bit for bit.
        slider: of the strength; None when it is unused.
        initial: the strength a new edit begins with.
        needs_firing: whether it changes nothing where its feature is silent.
        order: where it stands in lists.
    """

    title: str
    formula: str
    sentence: str
    refers_to: Reference
    acts: Mechanism
    counts: Literal["activation", "length"] | None = None
    neutral: float | None = None
    slider: Slider | None = None
    initial: float = 0.0
    needs_firing: bool = False
    order: int = 100

    # Sites an edit may name; none when it names no site.
    sites: ClassVar[tuple[SiteKind, ...]] = ()
    # Whether it replaces what is at its site, which only one edit can.
    replaces: ClassVar[bool] = False
    # Whether a certificate reads its feature's activation behind the edit.
    measured: ClassVar[bool] = False

    # --- what an edit of it is -------------------------------------------------------------------------

    def is_noop(self, edit: Edit) -> bool:
        """True when the edit provably changes nothing, whatever the input."""
        return edit.strength == self.neutral

    @abstractmethod
    def identity(self, edit: Edit) -> dict[str, Any]:
        """The fields that decide what an edit does, beside its kind: what a plan's fingerprint covers."""

    def amount(self, edit: Edit) -> float:
        """The strength in raw units, or the factor that it is."""
        return edit.strength * edit.unit_value if self.counts else edit.strength

    def validate(self, edit: Edit, number: int, n_layers: int | None) -> None:
        """Check what the types cannot say.

        Args:
            edit: of this kind.
            number: of the edit in its plan, from 1, for messages.
            n_layers: blocks of the model; None where there is no model yet, whose blocks are then not checked.

        Raises:
            MicroscopeError: ``incomplete_edit``, ``bad_feature``, ``bad_adapter``, ``bad_positions``,
                ``bad_site``, ``site_not_editable`` or ``layer_out_of_range``.
        """
        self._check_reference(edit, number)
        self._check_positions(edit, number)
        if self.sites:
            self._check_site(edit, number, n_layers)

    def _check_reference(self, edit: Edit, number: int) -> None:
        """An edit names what it is made from, and nothing else."""
        for name, article in (("feature", "a feature"), ("sae", "an SAE"), ("adapter", "an adapter")):
            if (name == self.refers_to) != bool(getattr(edit, name)):
                verb = "needs" if name == self.refers_to else "does not take"
                raise MicroscopeError("incomplete_edit", f"Edit {number} ({edit.kind}) {verb} {article}.")
        if edit.feature is not None and edit.feature.index < 0:
            raise MicroscopeError("bad_feature", f"Edit {number} names feature {edit.feature.index}.")
        if edit.modules and self.refers_to != "adapter":
            raise MicroscopeError("incomplete_edit", f"Edit {number} ({edit.kind}) does not take modules.")
        if len(edit.modules) > MAX_MODULES:
            raise MicroscopeError("bad_adapter", f"Edit {number} names {len(edit.modules)} modules.")

    def _check_positions(self, edit: Edit, number: int) -> None:
        where = edit.positions
        if where.start < 0 or any(i < 0 for i in where.indices):
            raise MicroscopeError("bad_positions", f"Edit {number} names a negative position.")
        if self.acts != "site" and where.mode != "all":
            raise MicroscopeError(
                "bad_positions",
                f"Edit {number} ({edit.kind}) stands for changed weights, which act on every token.",
                "Set its positions to all.",
            )

    def _check_site(self, edit: Edit, number: int, n_layers: int | None) -> None:
        site = Site.parse(edit.site)
        if site.kind not in self.sites:
            raise self._wrong_site(site, number)
        if n_layers is not None and site.layer >= n_layers:
            raise MicroscopeError(
                "layer_out_of_range",
                f"Edit {number} is at block {site.layer}, but the model's last block is {n_layers - 1}.",
            )

    def _wrong_site(self, site: Site, number: int) -> MicroscopeError:
        return MicroscopeError(
            "site_not_editable",
            f"Edit {number} is at {site}; live edits act on the residual stream after a block.",
            f"Use resid_post.{site.layer}.",
        )

    # --- what it is in weights -------------------------------------------------------------------------

    @abstractmethod
    def form_in(self, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """Which change of weights a target that can hold an edit at all holds; ``fitted`` when it is none."""

    def form_of(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """The same of one edit, where that depends on its site."""
        return self.form_in(traits, target)

    @abstractmethod
    def judge(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
        """How faithfully a target can hold an edit. (The runtime bundle is not asked: it holds any exactly.)"""

    def check(self) -> None:
        """Raise :class:`TypeError` when the kind leaves out a part, by name, or acts otherwise than its base."""
        own, parts = type(self), {name for owner in type(self).__mro__ for name in vars(owner)}
        declared = {name for owner in own.__mro__ for name in inspect.get_annotations(owner)}
        missing = {name for name in parts if getattr(getattr(own, name), "__isabstractmethod__", False)}
        missing |= {name for name in declared if not hasattr(own, name)}
        if missing:
            raise TypeError(f"the edit kind '{self.name}' leaves out {', '.join(sorted(missing))}")
        # Only the bases are asked for what an edit changes.
        given = dict(zip(reversed(own.__struct_fields__), reversed(own.__struct_defaults__), strict=False))
        if given.get("acts") != self.acts:
            raise TypeError(
                f"the edit kind '{self.name}' has no base in microscope.patching.mechanisms for acts='{self.acts}'"
            )


@functools.cache
def edit_kinds() -> Registry[EditKind]:
    """All kinds of edits by name: this program's in their order, then those of installed packages."""
    package = importlib.import_module(BUILT_IN)
    found = [
        importlib.import_module(f"{BUILT_IN}.{module.name}").KIND
        for module in pkgutil.iter_modules(package.__path__)
    ]
    return Registry("edit kind", GROUP, EditKind, sorted(found, key=lambda kind: (kind.order, kind.name)))


def kind_of(edit: Edit) -> EditKind:
    """The kind of an edit.

    Raises:
        MicroscopeError: ``unknown_edit_kind``, or ``bad_extension`` when an installed package's could not
            be used.
    """
    return edit_kinds().find(edit.kind)
