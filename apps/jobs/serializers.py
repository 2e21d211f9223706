"""Jobs as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from rest_framework import serializers

from apps.core.structs import StructSerializer
from apps.jobs.kinds import JobKind
from apps.jobs.models import Job, JobEvent, Pipeline
from apps.jobs.summary import (
    EventSummary,
    JobSummary,
    PipelineSummary,
    pipeline_summaries,
    summaries,
    summarise_event,
)
from microscope.params import FieldSpec, Preset


class JobSerializer(StructSerializer):
    """A job, the same over REST and WebSocket."""

    struct = JobSummary

    @classmethod
    def build_many(cls, instances: Iterable[Job]) -> list[JobSummary]:
        """Their summaries."""
        return summaries(instances)


class PipelineSerializer(StructSerializer):
    """Jobs submitted together."""

    struct = PipelineSummary

    @classmethod
    def build_many(cls, instances: Iterable[Pipeline]) -> list[PipelineSummary]:
        """Their summaries."""
        return pipeline_summaries(instances)


class JobCloneSerializer(serializers.Serializer[Any]):
    """What is different this time."""

    params = serializers.DictField(required=False, default=dict, help_text="Only the changed parameters.")
    name = serializers.CharField(
        required=False, default="", max_length=120, help_text="Of the new result, where results have names."
    )


class JobPrioritySerializer(serializers.Serializer[Any]):
    """Before or after others."""

    priority = serializers.IntegerField(
        min_value=-100, max_value=100, help_text="Higher goes first; 0 is usual."
    )


class JobEventSerializer(StructSerializer):
    """One line of a job's history."""

    struct = EventSummary

    @classmethod
    def build(cls, instance: JobEvent) -> EventSummary:
        """Its summary."""
        return summarise_event(instance)


class JobKindInfo(msgspec.Struct, kw_only=True, frozen=True):
    """A kind of job and the fields of its form."""

    name: str
    title: str
    description: str
    fields: list[FieldSpec]
    cloneable: bool
    named: bool
    presets: dict[str, Preset] = {}


class JobKindSerializer(StructSerializer):
    """A kind of job."""

    struct = JobKindInfo

    @classmethod
    def build(cls, instance: JobKind) -> JobKindInfo:
        """Its description, made from its parameters."""
        return JobKindInfo(
            name=instance.name,
            title=instance.title,
            description=(instance.params_type.__doc__ or "").strip().split("\n")[0],
            fields=instance.fields,
            cloneable=instance.clone is not None,
            named=instance.named,
            presets=dict(instance.params_type.presets),
        )


class JobEventsSerializer(serializers.Serializer[Any]):
    """A stretch of a job's history."""

    events = JobEventSerializer(many=True)
    last = serializers.IntegerField(help_text="Number of the job's newest event: ask again with ?after=.")


class JobDetailSerializer(serializers.Serializer[Any]):
    """A job with what only its own page needs."""

    job = JobSerializer()
    params = serializers.DictField()
    result = serializers.DictField()
