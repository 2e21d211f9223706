"""Read parameters from JSON-like data, and describe them for command lines, APIs and forms."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from microscope.errors import MicroscopeError
from microscope.params.base import JobParams
from microscope.params.edit_kinds import ANY_KIND, edit_kinds

P = TypeVar("P", bound=JobParams)


class FieldSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter, as a form or a command line needs to know it."""

    name: str
    type: str  # "integer", "number", "boolean", "string"
    description: str
    required: bool
    default: Any = None
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False
    unit: str = ""
    advanced: bool = False
    place: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None


_TYPE_NAMES: dict[type, str] = {int: "integer", float: "number", bool: "boolean", str: "string"}


def field_specs(params: type[msgspec.Struct]) -> Iterator[FieldSpec]:
    """Describe every parameter of a job, in declaration order."""
    hints = typing.get_type_hints(params, include_extras=True)
    for field in msgspec.structs.fields(params):
        inner, optional = hints[field.name], False
        if typing.get_origin(inner) in (typing.Union, types.UnionType):
            inner = next(a for a in typing.get_args(inner) if a is not types.NoneType)
            optional = True
        metas: list[msgspec.Meta] = []
        if typing.get_origin(inner) is typing.Annotated:
            inner, *extras = typing.get_args(inner)
            metas = [extra for extra in extras if isinstance(extra, msgspec.Meta)]
        meta = next((one for one in metas if one.description), metas[0] if metas else msgspec.Meta())
        many = typing.get_origin(inner) is tuple
        limits = meta
        if many:
            inner = typing.get_args(inner)[0]
            if typing.get_origin(inner) is typing.Annotated:
                inner, limits = typing.get_args(inner)
        choices = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()
        if any(one.extra_json_schema == ANY_KIND for one in metas):
            choices = tuple(edit_kinds())
        extra = meta.extra_json_schema or {}
        yield FieldSpec(
            name=field.name,
            type="string" if choices else _TYPE_NAMES[inner],
            description=meta.description or "",
            required=field.required,
            default=None if field.default is msgspec.NODEFAULT else field.default,
            choices=choices,
            many=many,
            optional=optional,
            unit=extra.get("x-unit", ""),
            advanced=extra.get("x-advanced", False),
            place=extra.get("x-place", False),
            minimum=limits.ge,
            maximum=limits.le,
            exclusive_minimum=limits.gt,
        )


def json_schema(params: type[JobParams]) -> dict[str, Any]:
    """JSON Schema of a job's parameters."""
    return _finished(msgspec.json.schema(params))


def schema_components(
    structs: Iterable[Any], ref_template: str
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """JSON Schemas of msgspec types and of the structs they are made of, the same whichever msgspec makes them.

    Args:
        structs: the types.
        ref_template: a reference to a component, with ``{name}`` in it.
    """
    return _finished(msgspec.json.schema_components(structs, ref_template=ref_template))


def _finished(schema: Any) -> Any:
    """A schema with the kinds of edits there are, and without the indentation of docstrings in descriptions.

    Only some versions of msgspec take the indentation away.
    """
    if isinstance(schema, dict):
        if ANY_KIND.items() <= schema.items():
            known = {"enum": list(edit_kinds()), "description": _kinds_in_words()}
            schema = known | {key: value for key, value in schema.items() if key not in ANY_KIND}
        return {
            key: inspect.cleandoc(value)
            if key == "description" and isinstance(value, str)
            else _finished(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return type(schema)(_finished(value) for value in schema)
    return schema


def _kinds_in_words() -> str:
    return "\n".join(f"- `{kind.name}`: {kind.formula}; {kind.description}" for kind in edit_kinds().values())


def decode_params(params: type[P], data: Mapping[str, Any] | bytes) -> P:
    """Validate data against a job's parameters. Where several values may stand, one needs no list.

    Raises:
        MicroscopeError: ``bad_parameters`` with the field and the reason, or the struct's own error.
    """
    try:
        plain = msgspec.json.decode(data, type=dict[str, Any]) if isinstance(data, bytes) else data
        listed = _listed(params, params.complete(plain))
        _require_finite(params, listed)
        return msgspec.convert(listed, type=params)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        # msgspec reports an exception of __post_init__ as its cause only when it was a ValueError/TypeError
        raise MicroscopeError("bad_parameters", f"{params.__name__}: {error}.") from error


def _require_finite(params: type[JobParams], data: Mapping[str, Any]) -> None:
    """No parameter means anything as NaN or infinity, and limits let NaN pass."""
    for name, value in data.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise MicroscopeError(
                    "bad_parameters", f"{params.__name__}: {name} is {one}.", "Give it a finite number."
                )


def _listed(params: type[JobParams], data: Mapping[str, Any]) -> dict[str, Any]:
    many = {spec.name for spec in field_specs(params) if spec.many}
    single = (int, float, str)
    return {k: [v] if k in many and isinstance(v, single) else v for k, v in data.items()}
