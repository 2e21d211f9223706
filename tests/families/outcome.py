"""What the product says of every causal family: traced, run live and how, exported, or refused and why."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel
from microscope.models import LoadedModel, load_model
from microscope.params import SITE_KINDS, Site
from microscope.patching.realisation import realisations, traits_of
from tests.families.tiny import EXCEPTIONS, make_any, multimodal_types, types


@dataclass(frozen=True)
class Case:
    """A model type, and what its configuration sets for another function than by default."""

    model_type: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.model_type, *(f"{name}={value}" for name, value in self.settings)])


@dataclass(frozen=True)
class Outcome:
    """One case.

    ``unbuildable`` is the error of ``transformers``; ``traced`` the refusal of loading it, ``live`` that of running it,
    each None where there is none. ``path`` says what runs it live, up to ``context`` tokens; ``sites`` in how many of
    ``layers`` blocks each kind of site exists; ``exports`` per target how faithfully it holds each kind of edit.
    """

    case: Case
    unbuildable: str = ""
    traced: MicroscopeError | None = None
    live: MicroscopeError | None = None
    path: str = ""
    layers: int = 0
    sites: tuple[tuple[str, int], ...] = ()
    context: int = 0
    exports: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every type, and those of which a setting makes a decoder of an encoder, or the other way round."""
    found: list[Case] = []
    for model_type in (*types(), *multimodal_types()):
        found.append(Case(model_type))
        for name, value in _turned(CONFIG_MAPPING[model_type]):
            if name not in EXCEPTIONS.get(model_type, {}):
                found.append(Case(model_type, ((name, value),)))
    return tuple(found)


def _turned(config: type[PretrainedConfig]) -> list[tuple[str, Any]]:
    """Settings of a configuration that turn which way a model sees, where they are off by default."""
    found: list[tuple[str, Any]] = []
    if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
        found.append(("is_decoder", True))
    if getattr(config, "use_bidirectional_attention", True) in (None, False):
        words = "all" in str(config.__annotations__.get("use_bidirectional_attention"))
        found.append(("use_bidirectional_attention", "all" if words else True))
    return found


def opened(case: Case, root: Path) -> tuple[Outcome, LoadedModel | None, ResidentModel | None]:
    """Build a case below ``root`` and load it as a person's model; None for what is refused."""
    try:
        folder = make_any(case.model_type, root / str(case), **dict(case.settings))
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(case, unbuildable=words), None, None
    try:
        loaded = load_model(str(folder), dtype="float32", device="cpu")
    except MicroscopeError as error:
        return Outcome(case, traced=error), None, None
    resident, live = None, None
    try:
        resident = ResidentModel(loaded, packed_bytes=0)
    except MicroscopeError as error:
        live = error
    outcome = Outcome(
        case,
        live=live,
        path=resident.runner.path if resident else "",
        layers=loaded.n_layers,
        sites=tuple((kind, sum(has(loaded, kind, i) for i in range(loaded.n_layers))) for kind in SITE_KINDS),
        context=resident.max_context if resident else 0,
        exports=grades(loaded) if resident else {},
    )
    return outcome, loaded, resident


def grades(loaded: LoadedModel) -> dict[str, dict[str, str]]:
    """How faithfully each target of an export holds each kind of edit, in the middle of the model."""
    found: dict[str, dict[str, str]] = {}
    for kind, verdicts in realisations(traits_of(loaded)).items():
        for target, verdict in verdicts.items():
            found.setdefault(target, {})[kind] = verdict.grade
    return found


def has(loaded: LoadedModel, kind: str, layer: int) -> bool:
    """Whether a site exists."""
    try:
        loaded.family.tap(Site(kind, layer))  # type: ignore[arg-type]
    except MicroscopeError:
        return False
    return True


_known: dict[Case, Outcome] = {}


def remember(outcome: Outcome) -> None:
    """Keep what has been found of a case for :func:`outcome_of`."""
    _known[outcome.case] = outcome


def outcome_of(case: Case) -> Outcome:
    """What is said of a case, found once."""
    if case not in _known:
        with tempfile.TemporaryDirectory() as folder:
            remember(opened(case, Path(folder))[0])
    return _known[case]
