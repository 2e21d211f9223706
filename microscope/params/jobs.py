"""Parameters of the jobs: inspect, trace, train, evaluate, analyse, import, export, explain."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from microscope.errors import MicroscopeError
from microscope.params.base import JobParams
from microscope.params.fields import describe as _meta
from microscope.params.precisions import Dtype
from microscope.params.provenance import ProvenanceParams
from microscope.params.sites import SiteKind
from microscope.params.training import TrainParams

ImportFormat = Literal[
    "auto",
    "native",
    "saelens",
    "sparsify",
    "dictionary_learning",
    "gemma_scope",
    "gemma_scope_2",
    "llama_scope",
    "pt",
]
ExportFormat = Literal["native", "saelens", "sparsify", "dictionary_learning", "neuronpedia"]

# Parameters that several jobs share.
_Device = Annotated[str, _meta("Where to compute: auto, cpu, cuda …", advanced=True)]
_SaePath = Annotated[str, _meta("SAE folder or its sae.safetensors.", place=True)]
_HeldOut = Annotated[str, _meta("Recording whose held-out documents are used.", place=True)]
_LossModel = (
    Annotated[str, _meta("Model for the loss metrics; default is the recording's.", place=True)] | None
)
_LossContexts = Annotated[
    int, _meta("Held-out contexts used for cross-entropy; 0 leaves it out.", unit="contexts", ge=0)
]
_HeldOutTokens = (
    Annotated[int, _meta("At most this many held-out tokens.", unit="tokens", advanced=True, ge=1)] | None
)
_ProbeTokens = Annotated[
    int,
    _meta(
        "Held-out tokens used for k-sparse probing of text properties; 0 leaves it out.", unit="tokens", ge=0
    ),
]
_Bootstrap = Annotated[int, _meta("Resamples for the confidence intervals.", advanced=True, ge=0)]
_BootstrapSeed = Annotated[int, _meta("Seed of the bootstrap.", advanced=True, ge=0)]
_Force = Annotated[bool, _meta("Accept another model than the recorded one.", place=True)]


class InspectParams(JobParams, frozen=True):
    """Read a model's configuration: what it is and what it needs; with rounded weights, what that changes."""

    model: Annotated[str, _meta("Hub id (owner/name), folder, or GGUF file of the model.", place=True)]
    revision: Annotated[str, _meta("Hub revision of the model.", place=True)] | None = None
    dtype: Annotated[
        Dtype,
        _meta("With int8 or nf4 the model is loaded, whole and rounded, and their logits are compared."),
    ] = "auto"
    load: Annotated[bool, _meta("Also load it, and say how it is run and which sites its blocks have.")] = (
        False
    )
    device: _Device = "auto"


class TraceParams(JobParams, frozen=True):
    """Record a model's activations on text into a Parquet store."""

    model: Annotated[str, _meta("Hub id (owner/name), folder, or GGUF file of the model.", place=True)]
    out: Annotated[str, _meta("Folder the recording is written to.", place=True)]
    layers: Annotated[tuple[int, ...], Meta(min_length=1, description="Blocks to record, counted from 0.")]
    site: Annotated[
        tuple[SiteKind, ...],
        Meta(min_length=1, description="Which activations of each block; a transcoder needs two of them."),
    ] = ("resid_post",)
    tokens: Annotated[int, _meta("How many tokens to record.", unit="tokens", ge=1)] = 1_000_000
    context_length: Annotated[int, _meta("Tokens per context window.", unit="tokens", ge=8)] = 128
    text: Annotated[
        tuple[str, ...], _meta("Files of text, JSON, CSV, Parquet or Arrow, or folders of them.", place=True)
    ] = ()
    dataset: Annotated[str, _meta("Hub dataset to stream instead of files.", place=True)] | None = None
    dataset_config: Annotated[str, _meta("Configuration of the Hub dataset.", advanced=True)] | None = None
    dataset_split: Annotated[str, _meta("Split of the Hub dataset.", advanced=True)] = "train"
    text_field: Annotated[
        str,
        _meta(
            "Field that holds the text of a row, dotted where it is nested; text stands for its usual names, too.",
            advanced=True,
        ),
    ] = "text"
    weights: Annotated[
        tuple[float, ...],
        _meta(
            "Mix the texts by these shares of tokens: one number per --text, then one for --dataset.",
            place=True,
        ),
    ] = ()
    tokens_per_document: (
        Annotated[
            int,
            _meta(
                "At most this many tokens of one document, as contexts spread evenly over it.",
                unit="tokens",
                ge=8,
            ),
        ]
        | None
    ) = None
    held_out: Annotated[
        float, _meta("Share of documents kept away from training, for evaluation.", ge=0.001, le=0.5)
    ] = 0.05
    dtype: Annotated[
        Dtype,
        _meta(
            "Precision of the model; auto is bfloat16 where the processor has it, int8 and nf4 round its weights."
        ),
    ] = "auto"
    revision: Annotated[str, _meta("Hub revision of the model.", advanced=True)] | None = None
    device: Annotated[
        str,
        _meta(
            "Where to compute: auto, cpu, cuda, cuda:1 …; balanced spreads the model over all GPUs.",
            advanced=True,
        ),
    ] = "auto"
    batch_tokens: Annotated[int, _meta("Tokens per forward pass.", unit="tokens", advanced=True, ge=1)] = 2048
    processes: Annotated[
        int,
        _meta(
            "Processes that share the work on a CPU, each with its part of the cores.", advanced=True, ge=1
        ),
    ] = 1
    memory_mb: Annotated[
        int, _meta("Memory for activations that wait to be written.", unit="MB", advanced=True, ge=1)
    ] = 512
    outlier_factor: Annotated[
        float,
        _meta("A token is an attention sink above this multiple of the median norm.", advanced=True, gt=1),
    ] = 8.0
    seed: Annotated[int, _meta("Order of the documents.", advanced=True, ge=0)] = 0
    resume: Annotated[bool, _meta("Continue an interrupted recording in the same folder.", advanced=True)] = (
        False
    )

    def __post_init__(self) -> None:
        one: object = self.site
        if isinstance(one, str):  # one may be written without its tuple
            msgspec.structs.force_setattr(self, "site", (one,))
        sources = len(self.text) + (self.dataset is not None)
        if self.text and self.dataset and not self.weights:
            raise MicroscopeError(
                "bad_weights",
                "Files and a dataset were both given, but not how to mix them.",
                "Add --weights with one number per --text and one for --dataset, or leave one of them out.",
            )
        if self.weights and (len(self.weights) != sources or not all(w > 0 for w in self.weights)):
            raise MicroscopeError(
                "bad_weights",
                f"There are {len(self.weights)} weights for {sources} texts; each text needs one above zero.",
                "Give one weight per --text, in their order, and one more for --dataset.",
            )


class EvaluateParams(JobParams, frozen=True):
    """Measure an SAE on the held-out part of a recording."""

    sae_path: _SaePath
    activations: _HeldOut
    layer: Annotated[int, _meta("Block; default is the SAE's own.", advanced=True, ge=0)] | None = None
    model: _LossModel = None
    out: Annotated[str, _meta("Folder for report.json, report.md and report.html.", place=True)] | None = None
    report: Annotated[str, _meta("Also write the HTML report here.", place=True)] | None = None
    loss_contexts: _LossContexts = 40
    max_tokens: _HeldOutTokens = None
    probe_tokens: _ProbeTokens = 8192
    bootstrap: _Bootstrap = 1000
    dtype: (
        Annotated[
            Dtype,
            _meta("Precision of the model for the loss metrics; default is the recording's.", advanced=True),
        ]
        | None
    ) = None
    device: Annotated[
        str,
        _meta(
            "Where to compute: auto, cpu, cuda …; balanced spreads the model over all GPUs.", advanced=True
        ),
    ] = "auto"
    seed: _BootstrapSeed = 0
    force: _Force = False


class CompareParams(JobParams, frozen=True):
    """Measure several SAEs on the same held-out text."""

    sae_path: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="SAE folders; the first is what others are compared with."),
    ]
    activations: _HeldOut
    model: _LossModel = None
    out: Annotated[str, _meta("Folder for the comparison and each one's report.", place=True)] | None = None
    loss_contexts: _LossContexts = 40
    max_tokens: _HeldOutTokens = None
    probe_tokens: _ProbeTokens = 8192
    bootstrap: _Bootstrap = 1000
    device: _Device = "auto"
    seed: _BootstrapSeed = 0
    force: _Force = False


class AnalyseParams(JobParams, frozen=True):
    """Describe every feature of an SAE from a recording."""

    sae_path: _SaePath
    activations: Annotated[str, _meta("Recording to read.", place=True)]
    out: Annotated[str, _meta("Folder for the results.", place=True)] | None = None
    model: (
        Annotated[str, _meta("Model for promoted tokens; default is the recording's.", place=True)] | None
    ) = None
    feature: (
        Annotated[int, _meta("Only this feature, printed instead of stored.", place=True, ge=0)] | None
    ) = None
    examples: Annotated[int, _meta("Top examples kept per feature.", ge=1, le=200)] = 12
    quantiles: Annotated[
        int,
        _meta("Groups of weaker examples, by the quantile of their peak; 0 for none.", ge=0, le=20),
    ] = 4
    quantile_examples: Annotated[
        int, _meta("Examples kept of each quantile group.", advanced=True, ge=1, le=50)
    ] = 3
    neighbours: Annotated[
        int, _meta("Similar and co-active features listed.", advanced=True, ge=1, le=100)
    ] = 8
    window: Annotated[int, _meta("Tokens shown either side of the peak.", unit="tokens", ge=1)] = 16
    top_tokens: Annotated[int, _meta("Tokens listed per feature.", advanced=True, ge=1, le=100)] = 10
    max_tokens: (
        Annotated[int, _meta("At most this many tokens.", unit="tokens", advanced=True, ge=1)] | None
    ) = None
    memory_mb: Annotated[
        int,
        _meta("Memory the pass may use, whatever the length of the text.", unit="MB", advanced=True, ge=64),
    ] = 1024
    force: _Force = False
    device: _Device = "auto"


class ImportParams(JobParams, frozen=True):
    """Bring an SAE in from another library, and test it on real activations."""

    path: Annotated[str, _meta("Folder or file of the SAE.", place=True)]
    out: Annotated[str, _meta("Folder the SAE is saved in, natively.", place=True)]
    format: Annotated[ImportFormat, _meta("Where it comes from; auto looks at the files.")] = "auto"
    site: (
        Annotated[
            str, _meta("Where in the model it reads, for example resid_post.12; default what the files say.")
        ]
        | None
    ) = None
    site_out: Annotated[str, _meta("Where a transcoder writes.", advanced=True)] | None = None
    k: (
        Annotated[int, _meta("Active latents per token, where the files do not say.", advanced=True, ge=1)]
        | None
    ) = None
    assume: Annotated[
        tuple[str, ...],
        _meta(
            "What to assume about a setting that stops the import: KEY=VALUE reads it as VALUE, KEY alone says that "
            "it does not change what the SAE computes. Noted in the SAE for good.",
            advanced=True,
        ),
    ] = ()
    subfolder: (
        Annotated[str, _meta("Which folder inside, when there are several SAEs.", advanced=True)] | None
    ) = None
    activations: Annotated[str, _meta("Recording to test it on.", place=True)] | None = None
    model: Annotated[str, _meta("Model to test it on, when there is no recording.", place=True)] | None = None
    revision: Annotated[str, _meta("Hub revision of the model.", place=True)] | None = None
    dtype: Annotated[Dtype, _meta("Precision of the model it is tested on.", place=True)] = "float32"
    untrusted: Annotated[
        bool, _meta("Check every file first, as one that a stranger has sent.", place=True)
    ] = False
    allow_pickle: Annotated[
        bool, _meta("Read .pt files (tensors only; no code in them is run).", place=True)
    ] = False
    device: _Device = "auto"


class ExportParams(JobParams, frozen=True):
    """Write an SAE for another library."""

    sae_path: _SaePath
    out: Annotated[str, _meta("Folder to write.", place=True)]
    format: Annotated[ExportFormat, _meta("Which library it is for.")] = "saelens"
    analysis: Annotated[str, _meta("Folder of `microscope features`, for dashboards.", place=True)] | None = (
        None
    )


JOB_PARAMS: dict[str, type[JobParams]] = {
    "inspect": InspectParams,
    "trace": TraceParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "compare": CompareParams,
    "analyse": AnalyseParams,
    "import": ImportParams,
    "export": ExportParams,
    "provenance": ProvenanceParams,
}
