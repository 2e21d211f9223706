"""Typed parameters of every job and every edit: the one part of ``microscope`` the portal may import.

Command-line options, REST validation and browser forms are all generated from these structs, so a
parameter is declared once. Nothing here imports torch.
"""

from typing import TYPE_CHECKING

from microscope.lazy import on_first_use
from microscope.params.architectures import Architecture, architectures, trained_architectures
from microscope.params.base import JobParams
from microscope.params.edit_kinds import EditKind, Slider, edit_kinds, kind_of
from microscope.params.edits import (
    Edit,
    EditPlan,
    FeatureRef,
    Positions,
    plan_fingerprint,
    validate_plan,
)
from microscope.params.events import ExitCode, JobEvent
from microscope.params.patches import (
    CertifyParams,
    ImportAdapterParams,
    PatchApplyParams,
    PatchCreateParams,
    PatchExportParams,
)
from microscope.params.presets import PRESETS, Preset
from microscope.params.running import Running, SiteReach
from microscope.params.schema import FieldSpec, decode_params, field_specs, json_schema
from microscope.params.sites import SITE_KINDS, Site
from microscope.params.targets import (
    EXPORT_TARGETS,
    ExportTarget,
    Verdict,
    realisation,
    verdict,
    verdicts,
)
from microscope.params.traits import ModelTraits, Obstacles

if TYPE_CHECKING:
    from microscope.params.jobs import (
        JOB_PARAMS,
        AnalyseParams,
        CompareParams,
        EvaluateParams,
        ExportParams,
        ImportParams,
        InspectParams,
        TraceParams,
    )
    from microscope.params.provenance import ProvenanceParams
    from microscope.params.training import RunKey, TrainParams

__all__ = [
    "EXPORT_TARGETS",
    "JOB_PARAMS",
    "PRESETS",
    "SITE_KINDS",
    "AnalyseParams",
    "Architecture",
    "CertifyParams",
    "CompareParams",
    "Edit",
    "EditKind",
    "EditPlan",
    "EvaluateParams",
    "ExitCode",
    "ExportParams",
    "ExportTarget",
    "FeatureRef",
    "FieldSpec",
    "ImportAdapterParams",
    "ImportParams",
    "InspectParams",
    "JobEvent",
    "JobParams",
    "ModelTraits",
    "Obstacles",
    "PatchApplyParams",
    "PatchCreateParams",
    "PatchExportParams",
    "Positions",
    "Preset",
    "ProvenanceParams",
    "RunKey",
    "Running",
    "Site",
    "SiteReach",
    "Slider",
    "TraceParams",
    "TrainParams",
    "Verdict",
    "architectures",
    "decode_params",
    "edit_kinds",
    "field_specs",
    "json_schema",
    "kind_of",
    "plan_fingerprint",
    "realisation",
    "trained_architectures",
    "validate_plan",
    "verdict",
    "verdicts",
]

# What packages add to training's parameters is looked for when those are needed, not when a package is imported
# that takes its own declaration's class from here.
_TRAINING = dict.fromkeys(("RunKey", "TrainParams"), "microscope.params.training")
_JOBS = dict.fromkeys(
    (
        "JOB_PARAMS",
        "AnalyseParams",
        "CompareParams",
        "EvaluateParams",
        "ExportParams",
        "ImportParams",
        "InspectParams",
        "TraceParams",
    ),
    "microscope.params.jobs",
)
_PROVENANCE = {"ProvenanceParams": "microscope.params.provenance"}
__getattr__ = on_first_use(__name__, _TRAINING | _JOBS | _PROVENANCE)
