"""Command-line options generated from the typed parameters of a job."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import click

from microscope.errors import MicroscopeError
from microscope.params import FieldSpec, JobParams, field_specs

# Usual short names of precisions, and flags that stand for one.
_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16", "f32": "float32"}
_PRECISION_FLAGS = {"load_in_8bit": "int8", "load_in_4bit": "nf4"}
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


class Count(click.ParamType[int]):
    """A whole number that may be written ``16k``, ``2M`` or ``1.5M``.

    For widths k means 1,024, as everywhere in the field; for tokens it means a thousand.
    """

    name = "count"

    def __init__(self, *, binary: bool) -> None:
        self._binary = binary

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([\d_]+(?:\.\d+)?)([kKmMbB]?)", str(value).strip())
        if not match:
            self.fail(f"'{value}' is not a number; write for example 500000, 500k or 2M", param, ctx)
        number, suffix = match.groups()
        factor = 1024 if self._binary and suffix.lower() == "k" else _SUFFIXES[suffix.lower()]
        return round(float(number.replace("_", "")) * factor)


class Choice(click.Choice[str]):
    """A choice that also understands the usual short names of number formats."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(_DTYPES.get(value, value), param, ctx)


class ManyCommand(click.Command):
    """A command whose repeatable options may be followed by several values: ``--layers 6 10 14``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        return super().parse_args(ctx, list(_spread(args, many)))


def _spread(args: Iterable[str], many: set[str]) -> Iterable[str]:
    current: str | None = None
    fresh = False
    for argument in args:
        if argument.startswith("-"):
            current, fresh = (argument, True) if argument in many else (None, False)
            yield argument
        elif current is None or fresh:
            fresh = False
            yield argument
        else:
            yield current
            yield argument


def job_options(
    params: type[JobParams], *, places: bool = True, leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds one option per parameter; required ones may also come from ``--config``.

    Args:
        params: the parameters.
        places: also those that are paths of this machine.
        leave_out: parameters that have no option.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for spec in reversed(list(field_specs(params))):
            if spec.name in leave_out or (spec.place and not places):
                continue
            if spec.name == "dtype" and "nf4" in spec.choices and not spec.place:
                for name, stands_for in reversed(_PRECISION_FLAGS.items()):
                    function = _precision_flag(name, stands_for)(function)
            function = _option(spec)(function)
        return function

    return decorate


def _option(spec: FieldSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + spec.name.replace("_", "-")
    flags = [flag, "--layer"] if spec.name == "layers" else [flag]
    if spec.type == "boolean":
        return click.option(f"{flag}/--no-{flag[2:]}", spec.name, default=None, help=_help(spec))
    kind: Any = {"integer": int, "number": float, "string": str}[spec.type]
    if spec.choices:
        kind = Choice(spec.choices)
    elif spec.type == "integer":
        kind = Count(binary=spec.unit == "latents")
    metavar = spec.unit.upper() if spec.unit and not spec.choices else None
    return click.option(
        *flags, spec.name, type=kind, multiple=spec.many, default=None, metavar=metavar, help=_help(spec)
    )


def _precision_flag(name: str, stands_for: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + name.replace("_", "-")
    return click.option(flag, name, is_flag=True, default=None, help=f"Short for --dtype {stands_for}.")


def _help(spec: FieldSpec) -> str:
    if spec.required:
        return spec.description + "  [required]"
    if spec.default in (None, ()):
        return spec.description
    default = " ".join(map(str, spec.default)) if spec.many else spec.default
    return f"{spec.description}  [default: {default}]"


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options a person actually wrote, flags for a precision as that precision.

    Raises:
        MicroscopeError: ``two_precisions``.
    """
    written = {name: value for name, value in values.items() if value is not None and value != ()}
    flags = [_PRECISION_FLAGS[name] for name in _PRECISION_FLAGS if written.pop(name, False)]
    precisions = {*flags, *([written["dtype"]] if flags and "dtype" in written else [])}
    if len(precisions) > 1:
        raise MicroscopeError(
            "two_precisions", f"The model cannot be both {' and '.join(sorted(precisions))}.", "Choose one."
        )
    return {**written, "dtype": flags[0]} if flags else written
