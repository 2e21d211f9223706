"""What models are called in files for others: by their names, not by where they are on this machine."""

from __future__ import annotations

import re
from typing import Any

import msgspec


def public_name(reference: str) -> str:
    """What to call a model in files for others: its Hub id, or the last part of a path on this machine."""
    if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", reference) and not reference.startswith("."):
        return reference
    return re.split(r"[/\\]", reference.rstrip("/\\"))[-1].strip(".")


def named_model(data: bytes) -> bytes:
    """A JSON document whose ``model`` goes by its name; one that says nothing of a place stays as it is.

    Manifests of recordings and configurations of SAEs say so where their model was found.
    """
    try:
        document = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data
    model: Any = document.get("model") if isinstance(document, dict) else None
    reference = model.get("reference") if isinstance(model, dict) else None
    if not isinstance(reference, str) or public_name(reference) == reference:
        return data
    model["reference"] = public_name(reference)
    return msgspec.json.format(msgspec.json.encode(document), indent=1)
