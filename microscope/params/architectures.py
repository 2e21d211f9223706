"""The architectures of SAEs, as command lines, the API and forms know them: names and parameters, no torch."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Collection, Iterator
from typing import Annotated, Any

import msgspec

from microscope.params.extensions import Declaration, Registry
from microscope.params.schema import field_specs

# With these words names of TrainParams begin: an architecture of such a name would claim them.
RESERVED = frozenset({"aux", "batch", "buffer", "checkpoint", "dead", "keep", "layer", "of", "order", "site"})


class Architecture(Declaration, frozen=True, kw_only=True):
    """One architecture of SAEs; other packages declare theirs under ``microscope.architectures``.

    ``model`` names a :class:`~microscope.sae.SparseAutoencoder`: what such an SAE computes, and what is kept in
    its file. ``objective`` names a :class:`~microscope.training.objectives.Objective`: how it is trained; one
    without is only imported. ``parameters`` is a ``msgspec.Struct`` of the training's own parameters, each with
    a default; in commands and forms the architecture's name stands before theirs.
    """

    model: str
    objective: str | None = None
    parameters: Any = None

    def check(self) -> None:
        if self.name in RESERVED:
            raise ValueError(f"'{self.name}' is how other parameters of training begin")
        if self.parameters is None:
            return
        if not (isinstance(self.parameters, type) and issubclass(self.parameters, msgspec.Struct)):
            raise TypeError(f"its parameters are {self.parameters!r}, not a msgspec.Struct")
        try:
            specs = list(field_specs(self.parameters))
        except KeyError as error:
            raise TypeError(f"a parameter has the type {error}, which no form shows") from error
        for spec in specs:
            if spec.required:
                raise ValueError(f"its parameter '{spec.name}' has no default")
        # limits that their types have not, and defaults outside of limits
        msgspec.convert(msgspec.to_builtins(self.parameters()), type=self.parameters)

    def check_beside(self, others: Collection[Architecture]) -> None:
        for other in others:
            for name in self.fields.keys() & other.fields.keys():
                raise ValueError(f"its parameter '{name}' would be taken for one of '{other.name}'")

    @property
    def fields(self) -> dict[str, msgspec.structs.FieldInfo]:
        """Its own parameters by the names they have among those of training."""
        if self.parameters is None:
            return {}
        return {f"{self.name}_{field.name}": field for field in msgspec.structs.fields(self.parameters)}


def _built_in(name: str, description: str, model: str, objective: str | None = None) -> Architecture:
    trained = f"microscope.training.objectives.{name}:{objective}" if objective else None
    return Architecture(
        name=name,
        description=description,
        model=f"microscope.sae.architectures.{name}:{model}",
        objective=trained,
    )


BUILT_IN = (
    _built_in("topk", "The k largest pre-activations of each token.", "TopKSae", "TopKObjective"),
    _built_in("batchtopk", "k winners per token on average.", "BatchTopKSae", "BatchTopKObjective"),
    _built_in(
        "matryoshka",
        "Nested prefixes that each reconstruct.",
        "MatryoshkaSae",
        "MatryoshkaObjective",
    ),
    _built_in("jumprelu", "A learned threshold per latent.", "JumpReluSae", "JumpReluObjective"),
    _built_in("gated", "One half gates, the other measures.", "GatedSae", "GatedObjective"),
    _built_in("standard", "ReLU with an L1 penalty.", "StandardSae", "StandardObjective"),
    # sparsify trains it; here it is only computed, edited and exported
    _built_in("groupmax", "The largest of each of k groups of latents.", "GroupMaxSae"),
)


@functools.cache
def architectures() -> Registry[Architecture]:
    """Every architecture by name."""
    return Registry("architecture", "microscope.architectures", Architecture, BUILT_IN)


@functools.cache
def trained_architectures() -> tuple[str, ...]:
    """The names of those that can be trained."""
    return tuple(name for name, declared in architectures().items() if declared.objective is not None)


def extra_fields() -> Iterator[tuple[str, Any, Any]]:
    """The parameters of training that installed architectures add: names, annotated types and defaults."""
    for architecture in architectures().values():
        for name, field in architecture.fields.items():
            default = field.default
            if default is msgspec.NODEFAULT:
                default = msgspec.field(default_factory=field.default_factory)
            yield name, _described(field.type, f"{architecture.name}: ", field.name), default


def _described(kind: Any, prefix: str, name: str) -> Any:
    """A parameter's type with a description that says whose it is, among the advanced ones."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = next(a for a in typing.get_args(kind) if a is not types.NoneType)
        return _described(inner, prefix, name) | None
    kind, *extras = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind,)
    meta = next((e for e in extras if isinstance(e, msgspec.Meta)), msgspec.Meta())
    limits = {key: getattr(meta, key) for key in ("gt", "ge", "lt", "le", "min_length", "max_length")}
    return Annotated[
        kind,
        msgspec.Meta(
            description=prefix + (meta.description or name),
            extra_json_schema={**(meta.extra_json_schema or {}), "x-advanced": True},
            **limits,
        ),
    ]
