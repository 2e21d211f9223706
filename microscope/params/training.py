"""Parameters of training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from microscope.errors import MicroscopeError
from microscope.params.architectures import architectures, extra_fields, trained_architectures
from microscope.params.base import JobParams
from microscope.params.fields import describe as meta
from microscope.params.presets import PRESETS, Preset, PresetName
from microscope.params.sites import Site, SiteKind

if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[trained_architectures()]
# One SAE is trained for every combination of these.
_VARIED = ("width", "k", "seed")


class RunKey(NamedTuple):
    """What tells the SAEs of one job apart."""

    width: int
    k: int
    seed: int

    def __str__(self) -> str:
        return f"w{self.width}-k{self.k}-s{self.seed}"


class TrainParams(JobParams, frozen=True):
    """Train sparse autoencoders on a recording: one for every combination of width, k and seed."""

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    activations: Annotated[str, meta("Recording to train on.", place=True)]
    out: Annotated[str, meta("Folder the SAE and its checkpoints are written to.", place=True)]
    layer: Annotated[int, meta("Block whose activations are used.", ge=0)]
    site: Annotated[SiteKind, meta("Which activation of the block.")] = "resid_post"
    preset: Annotated[PresetName, meta("A measured recipe; what is given beside it overrides it.")] | None = (
        None
    )
    arch: Annotated[ArchitectureName, meta("Architecture of the SAE.")] = "topk"
    width: Annotated[
        tuple[Annotated[int, Meta(ge=2)], ...],
        meta("Number of latents; 16k means 16384. Several: one SAE each.", unit="latents", min_length=1),
    ] = (4096,)
    k: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        meta("Active latents per token (L0); architectures with a penalty are steered to it.", min_length=1),
    ] = (32,)
    tokens: Annotated[
        int,
        meta(
            "Training tokens in all; the recording is read several times if it is shorter.",
            unit="tokens",
            ge=1,
        ),
    ] = 1_000_000
    batch_size: Annotated[int, meta("Tokens per step.", unit="tokens", ge=1)] = 1024
    lr: (
        Annotated[float, meta("Peak learning rate; by default chosen for width and batch size.", gt=0)] | None
    ) = None
    site_out: (
        Annotated[
            SiteKind, meta("Train a transcoder: which activation it predicts from the first.", advanced=True)
        ]
        | None
    ) = None
    layer_out: (
        Annotated[int, meta("Block a transcoder predicts; the same one by default.", advanced=True, ge=0)]
        | None
    ) = None
    skip: Annotated[bool, meta("Give the transcoder a linear path from input to output.", advanced=True)] = (
        False
    )
    warmup: Annotated[float, meta("Share of steps spent warming up.", advanced=True, ge=0, le=1)] = 0.02
    decay: Annotated[float, meta("Share of steps of the final linear decay.", advanced=True, ge=0, le=1)] = (
        0.2
    )
    aux_coefficient: Annotated[
        float, meta("Weight of the auxiliary loss that revives dead latents.", advanced=True, ge=0)
    ] = 1.0
    dead_after: (
        Annotated[
            int,
            meta(
                "The auxiliary loss pulls a latent after this many tokens without firing; default a twentieth of the run.",
                unit="tokens",
                advanced=True,
                ge=1,
            ),
        ]
        | None
    ) = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        meta(
            "Arithmetic of the product that looks for winners; after a bfloat16 search float32 decides.",
            advanced=True,
        ),
    ] = "auto"
    keep_outliers: Annotated[
        bool, meta("Train on attention sinks and special tokens too.", advanced=True)
    ] = False
    buffer_mb: Annotated[
        int,
        meta(
            "How much of the recording is mixed at a time, in the file cache.",
            unit="MB",
            advanced=True,
            ge=16,
        ),
    ] = 1024
    checkpoint_seconds: Annotated[float, meta("Time between checkpoints.", unit="s", advanced=True, gt=0)] = (
        20.0
    )
    seed: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        meta("Seed of the initial weights. Several: one SAE each.", advanced=True, min_length=1),
    ] = (0,)
    order_seed: Annotated[int, meta("Seed of the order in which tokens are read.", advanced=True, ge=0)] = 0
    device: Annotated[str, meta("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"
    resume: Annotated[
        bool, meta("Continue from the newest checkpoint in the same folder.", advanced=True)
    ] = False

    @classmethod
    def complete(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The preset's values, where none were given."""
        preset = PRESETS.get(data.get("preset", ""))
        return data if preset is None else {**preset.values, **data}

    def __post_init__(self) -> None:
        for name in _VARIED:  # one value may be written without its tuple
            value: object = getattr(self, name)
            if isinstance(value, int):
                msgspec.structs.force_setattr(self, name, (value,))
        if max(self.k) > min(self.width):
            raise MicroscopeError(
                "k_above_width",
                f"k is {max(self.k)} but the SAE has only {min(self.width)} latents.",
                "Lower k or raise the width.",
            )
        if len(set(self.runs)) < len(self.runs):
            raise MicroscopeError(
                "same_sae_twice",
                "A width, k or seed is given twice, which would train the same SAE twice.",
                "Give every value once.",
            )
        if self.skip and self.target is None:
            raise MicroscopeError(
                "skip_without_target",
                "A skip path belongs to a transcoder, and this SAE reconstructs its own input.",
                "Say what it should predict with --site-out or --layer-out.",
            )
        if self.target == self.source:
            raise MicroscopeError(
                "target_is_source",
                f"The transcoder would predict {self.target} from itself.",
                "Choose another --site-out or --layer-out, or leave both out to train an SAE.",
            )

    @property
    def source(self) -> Site:
        """What the SAE reads."""
        return Site(self.site, self.layer)

    @property
    def target(self) -> Site | None:
        """What a transcoder predicts; None for an SAE."""
        if self.site_out is None and self.layer_out is None:
            return None
        return Site(self.site_out or self.site, self.layer if self.layer_out is None else self.layer_out)

    @property
    def runs(self) -> list[RunKey]:
        """One for every SAE, in the order of their output folders."""
        return [RunKey(*values) for values in itertools.product(self.width, self.k, self.seed)]

    def alone(self, key: RunKey) -> TrainParams:
        """The same run for one of its SAEs."""
        return msgspec.structs.replace(self, width=(key.width,), k=(key.k,), seed=(key.seed,))

    @property
    def of_architecture(self) -> Any:
        """The architecture's own parameters as it declares them; None where it has none."""
        declared = architectures().find(self.arch)
        if declared.parameters is None:
            return None
        return declared.parameters(**{f.name: getattr(self, name) for name, f in declared.fields.items()})

    @property
    def settings(self) -> dict[str, Any]:
        """All parameters as plain values, without those of other architectures than this one's."""
        others = {name for key, a in architectures().items() if key != self.arch for name in a.fields}
        return {k: v for k, v in super().settings.items() if k not in others}


if not TYPE_CHECKING and (_extra := list(extra_fields())):
    TrainParams = msgspec.defstruct(
        "TrainParams",
        _extra,
        bases=(TrainParams,),
        namespace={"__doc__": TrainParams.__doc__},
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
