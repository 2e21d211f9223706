"""Parameters of the jobs that take patches out: make, try, export, certify, and bring adapters in."""

from __future__ import annotations

from typing import Annotated, Literal

from microscope.params.base import JobParams
from microscope.params.edits import KindName, Unit
from microscope.params.fields import describe
from microscope.params.precisions import Dtype
from microscope.params.targets import ExportTarget


class PatchCreateParams(JobParams, frozen=True):
    """Write an edit of a feature, or of a whole SAE, into a patch file."""

    sae_path: Annotated[str, describe("SAE folder or its sae.safetensors.", place=True)]
    out: Annotated[str, describe("Patch file to write; an existing one gets the edit added.", place=True)]
    feature: Annotated[int, describe("Which feature; kinds that use a whole SAE take none.", ge=0)] | None = (
        None
    )
    kind: Annotated[KindName, describe("What to do to the feature.")] = "ablate"
    strength: Annotated[
        float,
        describe("A factor or, for kinds that add or set an amount, a number of units; others ignore it."),
    ] = 0.0
    unit: Annotated[Unit, describe("What the strength counts where it is an amount.")] = "raw"
    unit_value: Annotated[float, describe("One unit in raw length.", advanced=True, gt=0)] = 1.0
    include_sinks: Annotated[
        bool, describe("Act on special tokens and attention sinks too, as weights do.", advanced=True)
    ] = False
    model: Annotated[str, describe("Model the patch is for; default is the SAE's.", place=True)] | None = None


class PatchApplyParams(JobParams, frozen=True):
    """Run a prompt with and without a patch."""

    patch: Annotated[str, describe("Patch file.", place=True)]
    prompt: Annotated[str, describe("Text to continue.", place=True)]
    model: Annotated[str, describe("Model; default is the patch's.", place=True)] | None = None
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    sae_path: Annotated[tuple[str, ...], describe("SAEs the patch names, if moved.", place=True)] = ()
    adapter_path: Annotated[
        tuple[str, ...], describe("Imported adapters the patch names, if moved.", place=True)
    ] = ()
    top: Annotated[int, describe("Tokens shown.", ge=1, le=100)] = 10
    dtype: Annotated[Dtype, describe("Precision of the model.")] = "auto"
    device: Annotated[str, describe("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"


class PatchExportParams(JobParams, frozen=True):
    """Turn a patch into files another program loads: exactly where possible, fitted and measured where not."""

    patch: Annotated[str, describe("Patch file.", place=True)]
    out: Annotated[str, describe("Folder to write.", place=True)]
    target: Annotated[ExportTarget, describe("What to write.")] = "peft"
    model: Annotated[str, describe("Model; default is the patch's.", place=True)] | None = None
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    sae_path: Annotated[tuple[str, ...], describe("SAEs the patch names, if moved.", place=True)] = ()
    adapter_path: Annotated[
        tuple[str, ...], describe("Imported adapters the patch names, if moved.", place=True)
    ] = ()
    activations: (
        Annotated[str, describe("Recording whose training text the fit sees.", place=True)] | None
    ) = None
    text: Annotated[
        tuple[str, ...], describe("Text files for the fit, when there is no recording.", place=True)
    ] = ()
    compiled: (
        Annotated[str, describe("Earlier export of the same patch to reuse the fit of.", place=True)] | None
    ) = None
    base_name: (
        Annotated[
            str,
            describe(
                "Name of the base model to write into the files; default is its Hub id, or the name of its folder.",
                place=True,
            ),
        ]
        | None
    ) = None
    rank: Annotated[int, describe("Rank of a fitted update.", ge=1, le=256)] = 8
    fit_tokens: Annotated[int, describe("Text a fit sees.", unit="tokens", ge=256)] = 20_000
    fit_steps: Annotated[
        int, describe("Steps of a fit's distillation, of four contexts each.", unit="steps", ge=0)
    ] = 120
    fit_seconds: Annotated[
        float,
        describe(
            "Time after which a fit stops, done or not; equal inputs give equal fits unless it does.",
            unit="s",
            ge=1,
        ),
    ] = 1800.0
    fit_blocks: Annotated[
        int,
        describe("Blocks either side of the edit the fit may change.", unit="blocks", advanced=True, ge=0),
    ] = 1
    triggers: Annotated[
        tuple[str, ...], describe("Prompts on which the patch is meant to act, for the certificate.")
    ] = ()
    dtype: Annotated[
        Literal["float32", "bfloat16"], describe("Number format of merged weights.", advanced=True)
    ] = "float32"
    device: Annotated[str, describe("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"
    seed: Annotated[int, describe("Seed of the fit.", advanced=True, ge=0)] = 0


class CertifyParams(JobParams, frozen=True):
    """Load an export the way its users will, and measure it against the patch and the untouched model."""

    export: Annotated[str, describe("Folder of the export.", place=True)]
    out: Annotated[str, describe("Folder for certificate.json and certificate.html.", place=True)]
    model: Annotated[str, describe("Model; default is the export's.", place=True)] | None = None
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    sae_path: Annotated[tuple[str, ...], describe("SAEs the patch names, if moved.", place=True)] = ()
    adapter_path: Annotated[
        tuple[str, ...], describe("Imported adapters the patch names, if moved.", place=True)
    ] = ()
    activations: Annotated[str, describe("Recording whose held-out text is used.", place=True)] | None = None
    text: Annotated[tuple[str, ...], describe("Text files, when there is no recording.", place=True)] = ()
    triggers: Annotated[
        tuple[str, ...],
        describe("Prompts on which the patch is meant to act, beside the text; default is the export's."),
    ] = ()
    contexts: Annotated[int, describe("Held-out contexts measured.", unit="contexts", ge=2)] = 32
    bootstrap: Annotated[int, describe("Resamples for the intervals.", advanced=True, ge=0)] = 1000
    device: Annotated[str, describe("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"
    seed: Annotated[int, describe("Seed of the draw of contexts and the bootstrap.", advanced=True, ge=0)] = 0


class ImportAdapterParams(JobParams, frozen=True):
    """Bring a LoRA adapter in (PEFT layout) and make a patch of it."""

    path: Annotated[
        str, describe("Folder with adapter_config.json and adapter_model.safetensors.", place=True)
    ]
    out: Annotated[str, describe("Folder the adapter and its patch file are written to.", place=True)]
    model: Annotated[str, describe("Model it is for.", place=True)]
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    dtype: Annotated[Dtype, describe("Precision of the model it is for.", place=True)] = "float32"
    device: Annotated[str, describe("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"
