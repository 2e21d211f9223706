"""What a graph explains: as the portal is asked, as it is stored, and as the job's parameters say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from apps.core.errors import Refused
from apps.graphs.models import Graph
from apps.registry.models import LanguageModel, ResultState
from apps.saes.models import Sae
from apps.saes.readiness import sae_not_ready
from microscope.graphs import GraphTarget
from microscope.params import ProvenanceParams, decode_params

# What each kind of target is made of.
_NEEDS: dict[str, tuple[str, ...]] = {
    "feature": ("sae", "index"),
    "token": ("token",),
    "difference": ("token", "against"),
    "attention": ("layer", "head", "key"),
    "direction": ("layer", "vector"),
}
_FIELDS = frozenset(name for needed in _NEEDS.values() for name in needed)


def check_target(target: GraphTarget, saes: Sequence[Sae], model: LanguageModel) -> GraphTarget:
    """A target as it is stored: whole, and with the fingerprint of its SAE.

    Args:
        target: its ``sae`` is the id of one of ``saes``, or its fingerprint.

    Raises:
        Refused: ``bad_target``, ``feature_out_of_range``, ``another_model``, ``sae_not_ready``.
    """
    for sae in saes:
        if sae.model_id != model.pk:
            raise Refused(
                "another_model",
                f"The SAE “{sae.name}” is of another model than {model.name}.",
                "Choose SAEs of one model.",
                attr="saes",
            )
        if sae.state != ResultState.READY or sae.artifact is None:
            raise sae_not_ready(sae)
    _check_fields(target)
    if target.kind != "feature":
        return target
    own = next((sae for sae in saes if target.sae in (str(sae.pk), sae.fingerprint)), None)
    if own is None:
        raise Refused(
            "bad_target",
            "The SAE of the target is none of those given.",
            "Give its id among saes, too.",
            attr="target",
        )
    if not 0 <= (target.index or 0) < own.width:
        raise Refused(
            "feature_out_of_range", f"{own.name} has no feature {target.index} of {own.width}.", attr="target"
        )
    return msgspec.structs.replace(target, sae=own.fingerprint)


def _check_fields(target: GraphTarget) -> None:
    needed = _NEEDS[target.kind]
    empty = (None, "", ())
    missing = [name for name in needed if getattr(target, name) in empty]
    if missing:
        raise Refused(
            "bad_target", f"A target of the kind {target.kind} needs {' and '.join(missing)}.", attr="target"
        )
    foreign = sorted(n for n in _FIELDS - set(needed) if getattr(target, n) not in empty)
    if foreign:
        raise Refused(
            "bad_target",
            f"A target of the kind {target.kind} has no {foreign[0]}.",
            f"It is made of {', '.join(needed)} and position.",
            attr="target",
        )


def target_params(target: GraphTarget, saes: Sequence[Sae]) -> dict[str, Any]:
    """A checked target as parameters of the job; the vector of a direction travels as a file."""
    at = {"position": target.position}
    match target.kind:
        case "feature":
            own = next(sae for sae in saes if sae.fingerprint == target.sae)
            return {**at, "feature": target.index, "layer": own.layer, "site": own.site}
        case "token":
            return {**at, "token_id": target.token}
        case "difference":
            return {**at, "token_id": target.token, "against_id": target.against}
        case "attention":
            return {"attention": f"{target.layer}.{target.head}:{target.position}:{target.key}"}
    return {**at, "direction_layer": target.layer}


# The job's parameters that together say what is explained.
_SAYING = (
    *("feature", "layer", "site", "token", "against", "token_id", "against_id"),
    *("attention", "direction_layer", "position"),
)


def take_target(target: GraphTarget, saes: Sequence[Sae], params: dict[str, Any]) -> GraphTarget:
    """A stored target with what a clone's parameters change of it; takes those that say it out of ``params``.

    Raises:
        Refused: ``bad_target`` when they say something that no target of this kind says.
        MicroscopeError: ``bad_target`` for an attention score that is none.
    """
    said = {name: params.pop(name, None) for name in _SAYING}
    changes: dict[str, Any] = {}
    if said["position"] is not None:
        changes["position"] = said["position"]
    match target.kind:
        case "feature":
            changes["index"] = said["feature"]
            at = (said["layer"], said["site"])
            changes["sae"] = next((s.fingerprint for s in saes if (s.layer, s.site) == at), target.sae)
        case "token":
            changes["token"] = said["token_id"]
        case "difference":
            changes |= {"token": said["token_id"], "against": said["against_id"]}
        case "attention":
            text = {"attention": said["attention"] or ""}
            score = decode_params(ProvenanceParams, {"model": "-", "prompt": "-", **text}).attention_score()
            changes = {"layer": score.layer, "head": score.head, "position": score.query, "key": score.key}
        case "direction":
            changes["layer"] = said["direction_layer"]
    changed = msgspec.structs.replace(target, **changes)
    again = target_params(changed, saes)
    ignored = [name for name in _SAYING if said[name] != again.get(name) and said[name] is not None]
    if target.kind == "attention":
        ignored = [name for name in ignored if name != "position"]
    if ignored:
        raise Refused(
            "bad_target",
            f"{ignored[0]} cannot be {said[ignored[0]]!r} for this target.",
            "Make a new graph for another kind of target.",
            attr="params",
        )
    return changed


def saes_of(graph: Graph) -> list[Sae]:
    """The SAEs a graph names, with their files.

    Raises:
        Refused: ``unknown_sae`` when one has been deleted since.
    """
    rows = Sae.objects.select_related("artifact").filter(
        project_id=graph.project_id,
        model_id=graph.model_id,
        state=ResultState.READY,
        fingerprint__in=graph.saes,
    )
    found = {sae.fingerprint: sae for sae in rows}
    if len(found) < len(graph.saes):
        raise Refused(
            "unknown_sae", "An SAE the graph names has been deleted.", "Restore it, or make another graph."
        )
    return [found[name] for name in graph.saes]
