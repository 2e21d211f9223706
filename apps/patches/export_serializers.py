"""Exports, certificates and adapters as JSON."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.core.structs import StructSerializer
from apps.core.views import VisibleField
from apps.jobs.serializers import JobSerializer
from apps.patches.models import Adapter, Certificate, Export
from apps.registry.models import LanguageModel, Recording
from microscope.params import EXPORT_TARGETS, Verdict


class VerdictSerializer(StructSerializer):
    """What one target can hold of a patch."""

    struct = Verdict


class GateSerializer(serializers.Serializer[Any]):
    """A limit of a certificate, and whether it was kept (null: not measured, which does not pass)."""

    name = serializers.CharField()
    value = serializers.FloatField(allow_null=True)
    limit = serializers.FloatField()
    passed = serializers.BooleanField(allow_null=True)
    formula = serializers.CharField()
    at_least = serializers.BooleanField(help_text="True: the value must reach the limit; else keep below it.")
    interval = serializers.ListField(
        child=serializers.FloatField(),
        min_length=2,
        max_length=2,
        allow_null=True,
        help_text="95 % bootstrap interval of the value, where there is one.",
    )


class ShareSerializer(serializers.Serializer[Any]):
    """The share of a patch's effect that an export keeps, where the patch acts: the headline of a certificate."""

    value = serializers.FloatField()
    interval = serializers.ListField(
        child=serializers.FloatField(), min_length=2, max_length=2, allow_null=True
    )


class CertificateSerializer(serializers.ModelSerializer[Certificate]):
    """What was measured on the reloaded files."""

    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    gates = serializers.SerializerMethodField()
    share = serializers.SerializerMethodField()
    measured = serializers.SerializerMethodField(
        help_text="Parity, effect, collateral, null test; empty until measured."
    )

    class Meta:
        model = Certificate
        fields = ("id", "state", "passed", "gates", "share", "measured", "job", "created_at")
        read_only_fields = fields

    @extend_schema_field(GateSerializer(many=True))
    def get_gates(self, certificate: Certificate) -> Any:
        """The gates, in order."""
        # Certificates of older versions know limits from above only.
        plain = {"at_least": False, "interval": None}
        return [{**plain, **gate} for gate in certificate.report.get("gates", [])]

    @extend_schema_field(ShareSerializer(allow_null=True))
    def get_share(self, certificate: Certificate) -> Any:
        """The share of effect kept; null until measured, where the patch acts nowhere, and in older ones."""
        return certificate.report.get("effect", {}).get("share")

    def get_measured(self, certificate: Certificate) -> dict[str, Any]:
        """The report without what the export says already."""
        return {k: v for k, v in certificate.report.items() if k not in ("gates", "export")}


class ExportSerializer(serializers.ModelSerializer[Export]):
    """An export with its newest certificate. ``gate`` says whether its files may be fetched."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    patch = serializers.UUIDField(source="patch_id", read_only=True)
    patch_name = serializers.CharField(source="patch.name", read_only=True)
    recording = serializers.UUIDField(source="recording_id", read_only=True, allow_null=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    files = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    fit = serializers.SerializerMethodField()
    certificate = serializers.SerializerMethodField()
    created_by = serializers.CharField(
        source="created_by.username", read_only=True, default=None, allow_null=True
    )
    overridden_by = serializers.CharField(
        source="overridden_by.username", read_only=True, default=None, allow_null=True
    )
    params = serializers.DictField(read_only=True)

    class Meta:
        model = Export
        fields = (
            "id",
            "project",
            "patch",
            "patch_name",
            "patch_version",
            "fingerprint",
            "target",
            "grade",
            "reason",
            "state",
            "gate",
            "params",
            "fit",
            "files",
            "certificate",
            "recording",
            "override_reason",
            "overridden_by",
            "overridden_at",
            "artifact",
            "job",
            "created_by",
            "created_at",
        )
        read_only_fields = fields

    def get_files(self, export: Export) -> list[dict[str, Any]]:
        """Path, bytes and sha256 of each file."""
        return export.artifact.files if export.artifact is not None else []

    def get_reason(self, export: Export) -> str:
        """Why the grade is what it is."""
        return str(export.manifest.get("reason", ""))

    def get_fit(self, export: Export) -> dict[str, Any] | None:
        """How the fit went, where there was one."""
        found: dict[str, Any] | None = export.manifest.get("fit")
        return found

    @extend_schema_field(CertificateSerializer(allow_null=True))
    def get_certificate(self, export: Export) -> Any:
        """The newest certificate, finished or not."""
        newest = getattr(export, "certificates_newest_first", [])
        return CertificateSerializer(newest[0]).data if newest else None


class ExportCreateSerializer(serializers.Serializer[Any]):
    """An export to make; ``params`` are those of the job kind ``export_patch``."""

    target = serializers.ChoiceField(choices=EXPORT_TARGETS)
    recording = VisibleField(Recording, required=False, allow_null=True, default=None)
    params = serializers.DictField(required=False, default=dict, help_text="See /api/v1/job-kinds.")


class ExportJobSerializer(serializers.Serializer[Any]):
    """An export and a job about it."""

    export = ExportSerializer()
    job = JobSerializer()


class OverrideSerializer(serializers.Serializer[Any]):
    """Why an export may leave although it did not pass."""

    reason = serializers.CharField(min_length=10, max_length=2000)


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    """An adapter that was brought in, and the patch made of it."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    model = serializers.UUIDField(source="model_id", read_only=True)
    patch = serializers.UUIDField(source="patch_id", read_only=True, allow_null=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    summary = serializers.DictField(read_only=True)

    class Meta:
        model = Adapter
        fields = (
            "id",
            "project",
            "model",
            "name",
            "state",
            "fingerprint",
            "summary",
            "patch",
            "artifact",
            "job",
            "created_at",
        )
        read_only_fields = fields


class AdapterCreateSerializer(serializers.Serializer[Any]):
    """An adapter to bring in: two finished uploads, adapter_config.json and adapter_model.safetensors."""

    model = VisibleField(LanguageModel)
    name = serializers.CharField(max_length=120)
    uploads = serializers.ListField(child=serializers.UUIDField(), min_length=1, max_length=10)


class AdapterJobSerializer(serializers.Serializer[Any]):
    """An adapter and the job that checks it."""

    adapter = AdapterSerializer()
    job = JobSerializer()
