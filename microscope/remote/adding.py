"""A model and the SAEs of a folder, put on a portal and made ready for live work."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.progress import Progress
from microscope.remote.client import Workbench

_LOADING_SECONDS = 600.0
_LOOK_EVERY = 0.5


def source_of(reference: str) -> tuple[str, str]:
    """What kind of source a model's reference names, and the reference as the portal wants it.

    Returns:
        ``("gguf" | "folder", absolute path)`` or ``("hub", id)``.

    Raises:
        MicroscopeError: ``no_such_model`` for what looks like a path and is none.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return "gguf", str(path.resolve())
    if path.is_dir():
        return "folder", str(path.resolve())
    parts = reference.split("/")
    if reference.startswith((".", "/", "~")) or reference.endswith(".gguf") or len(parts) > 2:
        raise MicroscopeError(
            "no_such_model",
            f"There is no model at '{reference}'.",
            "Give a folder, a .gguf file, or the id of a model of the Hub (owner/name).",
        )
    return "hub", reference


def add_model(
    lab: Workbench,
    *,
    project: str,
    reference: str,
    progress: Progress,
    name: str | None = None,
    revision: str | None = "",
    dtype: str | None = "auto",
) -> dict[str, Any]:
    """Add a model to a project unless it is there in that revision and precision, and load it.

    Args:
        reference: what :func:`source_of` understands.
        name: by default the last part of the reference.

    Returns:
        the model as the portal describes it, loaded.

    Raises:
        MicroscopeError: what the portal refuses, why the model could not be read or loaded, ``load_timeout``.
    """
    source, place = source_of(reference)
    wanted = {"source": source, "reference": place, "revision": revision or "", "dtype": dtype or "auto"}
    known = (row for row in lab.connection.pages("models", project=project) if row["state"] != "failed")
    model = next((row for row in known if wanted.items() <= row.items()), None)
    if model is None:
        body = {"project": project, "name": name or _name_of(place), **wanted}
        made = lab.connection.post("models", body)
        model, job = made["model"], made["job"]["id"]
    else:
        progress.log(f"{model['name']} is there already.")
        job = model["job"] if model["state"] == "pending" else None
    if job is not None:
        lab.follow(job, progress)
    lab.connection.post(f"models/{model['id']}/load")
    return _loaded(lab, model["id"], progress)


def add_saes(
    lab: Workbench, *, model: dict[str, Any], saes: Mapping[str, Path], progress: Progress
) -> list[dict[str, Any]]:
    """Import SAEs of a model unless they are there, and attach them to it.

    One that fails does not stop the others.

    Args:
        saes: name → its folder or file.

    Returns:
        for each: ``name``, ``state`` (``attached``, ``attaching`` or ``failed``) and, when it failed, ``why``.
    """
    there = [
        row
        for row in lab.connection.pages("saes", project=model["project"])
        if row["model"] == model["id"] and row["state"] != "failed"
    ]
    told = []
    for name, folder in saes.items():
        try:
            sae = _sae_of(lab, model, name, folder, there, progress)
            state = lab.connection.post(f"saes/{sae}/attach")["state"]
            told.append({"name": name, "state": state})
        except MicroscopeError as error:
            told.append({"name": name, "state": "failed", "why": f"{error.message} {error.hint}".strip()})
    return told


def _sae_of(
    lab: Workbench,
    model: dict[str, Any],
    name: str,
    folder: Path,
    there: list[dict[str, Any]],
    progress: Progress,
) -> str:
    """The id of the portal's SAE of a folder, imported now unless it is there."""
    fingerprint = _fingerprint(folder)
    found = next((row for row in there if _same(row, name, fingerprint)), None)
    if found is not None:
        if found["state"] == "pending":
            lab.follow(found["job"], progress)
        return str(found["id"])
    # An SAE trained anew keeps its folder's name, with a number; the one that is there keeps its own.
    taken = {row["name"] for row in there}
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    chosen = next(one for one in itertools.chain([name], numbered) if one not in taken)
    progress.log(f"Importing {chosen}")
    job = lab.import_sae(folder, model=model["id"], name=chosen, progress=progress)
    return lab.follow(job.id, progress).subject_id


def _same(row: dict[str, Any], name: str, fingerprint: str) -> bool:
    """Whether an SAE of the portal is the one of a folder; by its name where one of them states no fingerprint."""
    if fingerprint and row["fingerprint"]:
        return bool(row["fingerprint"] == fingerprint)
    return bool(row["name"] == name)


def _fingerprint(folder: Path) -> str:
    """The content fingerprint that a native SAE states; empty for other formats."""
    try:
        found = json.loads((folder / "sae.json").read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def _loaded(lab: Workbench, model: str, progress: Progress) -> dict[str, Any]:
    """Wait until a resident worker holds the model."""
    until = time.monotonic() + _LOADING_SECONDS
    with progress.phase("loading", 0.0, ""):
        while time.monotonic() < until:
            found: dict[str, Any] = lab.connection.get(f"models/{model}")
            resident = found["resident"] or {"state": "starting"}
            if resident["state"] == "ready":
                return found
            if resident["state"] == "failed":
                raise MicroscopeError(resident["code"], resident["message"], resident["hint"])
            time.sleep(_LOOK_EVERY)
    raise MicroscopeError(
        "load_timeout",
        f"The model was not loaded after {_LOADING_SECONDS:.0f} s.",
        "Look at its page, and at the log of the agent.",
    )


def _name_of(place: str) -> str:
    """A model's name where none is given: the last part of its id, folder or file."""
    return Path(place).name.removesuffix(".gguf")[:120]
