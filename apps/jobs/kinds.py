"""Kinds of jobs. The app that owns a kind's result lists it under ``KINDS`` in its module ``kinds``; jobs know none of
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from django.apps import apps
from django.conf import settings
from django.utils.module_loading import module_has_submodule

from apps.core.errors import Refused
from apps.core.extensions import Extension
from apps.jobs.states import ResultState
from microscope.params import FieldSpec, JobParams, decode_params, field_specs

if TYPE_CHECKING:
    from django.db.models import Model

    from apps.jobs.models import Job

# Folders of a job: what it makes, and the uploads it reads.
OUT, INCOMING = "out", "in"


def engine(*arguments: str) -> Callable[[], tuple[str, ...]]:
    """The command of the interpreter that has torch, running ``microscope`` as a person would."""
    return lambda: (str(settings.WORKBENCH_ENGINE_PYTHON or sys.executable), "-m", "microscope", *arguments)


def always(config: Mapping[str, Any]) -> bool:
    """Under every configuration."""
    return True


def never(config: Mapping[str, Any]) -> bool:
    """Under no configuration."""
    return False


class CloneRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wants done once more.

    Args:
        actor: who asks.
        job: the job to repeat.
        params: all its parameters, the changed ones included.
        name: of the new result; empty for results without names.
    """

    actor: Any
    job: Any
    params: dict[str, Any]
    name: str
    idempotency_key: str = ""


@dataclasses.dataclass(frozen=True)
class JobKind:
    """What there is to know about one kind of job.

    Args:
        name: stable name, stored with every job.
        title: for people.
        params_type: the engine's parameters; paths are filled in by ``prepare``.
        command: called when the job starts; the argument list of the child, without the common options.
        prepare: called when the job starts, with the job and its folder; returns the complete
            configuration, paths included.
        on_success: called in the committing transaction with the job, its result, and what ``digest`` made.
        digest: called before that transaction with the job, its result and the output folder, for
            reading that takes long; nothing may be written to the database yet.
        fills: model of the row the job fills in, its subject, whose ``state`` follows the job's.
        artifact: kind of the artifact its output folder becomes; None when it leaves no files.
        work: how much work its parameters ask for, in any unit: estimates compare jobs of a kind by it.
        clone: submits such a job again with other parameters; None when that makes no sense.
        named: whether a clone needs a name for its result.
        takes_in: whether it reads files that people have sent, which are removed when it has succeeded, or what a
            model's folder says of itself; less time is allowed then, and smaller files.
        computes: whether it computes with a model or an SAE under the configuration ``prepare`` returned; what
            only reads and writes files gets little memory.
        hub: whether it may fetch a model or texts; only then is its process told the Hub's token.
    """

    name: str
    title: str
    params_type: type[JobParams]
    command: Callable[[], tuple[str, ...]]
    prepare: Callable[[Job, Path], dict[str, Any]]
    on_success: Callable[[Job, dict[str, Any], Any], None] = lambda job, result, digest: None
    digest: Callable[[Job, dict[str, Any], Path], Any] = lambda job, result, out: None
    fills: type[Model] | None = None
    artifact: str | None = None
    work: Callable[[Mapping[str, Any]], float] = lambda params: 1.0
    clone: Callable[[CloneRequest], Job] | None = None
    named: bool = False
    takes_in: bool = False
    computes: Callable[[Mapping[str, Any]], bool] = always
    hub: bool = False

    @property
    def fields(self) -> list[FieldSpec]:
        """The parameters a person chooses, for forms."""
        return [spec for spec in field_specs(self.params_type) if not spec.place and spec.name != "resume"]

    def on_failure(self, job: Job) -> None:
        """The job failed or was cancelled for good."""
        self._set_state(job, ResultState.FAILED)

    def on_retry(self, job: Job) -> None:
        """A failed or cancelled job is started again."""
        self._set_state(job, ResultState.PENDING)

    def _set_state(self, job: Job, state: ResultState) -> None:
        if self.fills is not None:
            self.fills._default_manager.filter(pk=job.subject_id).update(state=state)

    def validate(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What a person chose, checked and completed with defaults.

        Raises:
            MicroscopeError: ``bad_parameters`` or the struct's own error.
        """
        chosen = {spec.name for spec in self.fields}
        foreign = sorted(set(data) - chosen)
        if foreign:
            raise Refused(
                "bad_parameters",
                f"{self.title} has no parameter {foreign[0]}.",
                f"It has {', '.join(sorted(chosen))}.",
                attr="params",
            )
        paths = {spec.name: "-" for spec in field_specs(self.params_type) if spec.place and spec.required}
        whole = decode_params(self.params_type, {**paths, **data})
        plain = whole.settings
        return {name: plain[name] for name in plain if name in chosen}


_kinds: dict[str, JobKind] = {}


def discover() -> None:
    """Make the kinds of all installed apps known.

    Raises:
        BrokenExtension: those of another package's app cannot be used.
    """
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, "kinds"):
            with config.named() if isinstance(config, Extension) else contextlib.nullcontext():
                for kind in getattr(import_module(f"{config.name}.kinds"), "KINDS", ()):
                    register(kind)


def register(kind: JobKind) -> None:
    """Make a kind known; once."""
    if kind.name in _kinds:
        raise ValueError(f"the job kind {kind.name} is registered twice")
    _kinds[kind.name] = kind


def get_kind(name: str) -> JobKind:
    """The kind of that name; one that does nothing when the package it came with is gone."""
    return _kinds.get(name) or _gone(name)


def _gone(name: str) -> JobKind:
    def refuse(job: Job, workdir: Path) -> dict[str, Any]:
        raise Refused(
            "unknown_job_kind",
            f"No installed package has jobs of the kind '{name}'.",
            "Install the one it came with.",
        )

    return JobKind(
        name=name,
        title=name,
        params_type=JobParams,
        command=engine(name),
        prepare=refuse,
    )


def all_kinds() -> list[JobKind]:
    """Every kind, in the order of registration."""
    return list(_kinds.values())
