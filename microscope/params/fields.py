"""How a job parameter says what it is."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

# Whole numbers that every reader of JSON keeps exactly; beyond them some round, and some formats have no place.
Integer = Annotated[int, Meta(ge=-(2**53), le=2**53)]


def describe(
    description: str, *, unit: str = "", advanced: bool = False, place: bool = False, **limits: Any
) -> Meta:
    """Documentation and limits of one field.

    ``unit`` is shown beside the value; ``advanced`` fields are folded away in forms; ``place`` marks
    paths, which a person types on the command line and the portal fills in itself.
    """
    extra = {"x-unit": unit, "x-advanced": advanced, "x-place": place}
    return Meta(description=description, extra_json_schema={k: v for k, v in extra.items() if v}, **limits)
