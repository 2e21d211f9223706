"""Parameters of the job that explains where a feature, a token or an attention score comes from."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from microscope.errors import MicroscopeError
from microscope.params.base import JobParams
from microscope.params.fields import describe
from microscope.params.precisions import Dtype
from microscope.params.sites import SiteKind

# How far one graph may go. The live request and the portal keep to the same numbers.
MAX_HOPS, MAX_PARENTS, MAX_SHOWN = 12, 64, 2000
DEFAULT_HOPS, DEFAULT_PARENTS, DEFAULT_SHOWN = 2, 8, 40

# How attributions pass an MLP: by its gradient at this point, or with its gates and activation functions held.
MlpRule = Literal["gradient", "gates"]

_ATTENTION = re.compile(r"(\d{1,6})\.(\d{1,6}):(-?\d{1,9}):(-?\d{1,9})", re.ASCII)


def upstream_layers(layer: int) -> tuple[int, ...]:
    """Blocks to record and train on so that a target at ``layer`` has something below it, evenly spread.

    The target's own block is not among them: what is read behind it has no parents there.

    Args:
        layer: block behind which the target is read.

    Returns:
        Up to three blocks, lowest first; none where nothing lies below.
    """
    return tuple(sorted({layer * part // 4 for part in (1, 2, 3)} - {layer}))


class AttentionScore(NamedTuple):
    """One head's score between two positions; negative ones count from the end."""

    layer: int
    head: int
    query: int
    key: int


class ProvenanceParams(JobParams, frozen=True):
    """Explain a feature, a token, an attention score or a direction by features of the blocks below."""

    model: Annotated[str, describe("Hub id (owner/name), folder, or GGUF file of the model.", place=True)]
    prompt: Annotated[str, describe("Text on which the target is explained.")]
    sae_path: Annotated[
        tuple[str, ...], describe("SAEs and transcoders of the model; their latents are nodes.", place=True)
    ] = ()
    feature: Annotated[int, describe("Explain this feature of one of the SAEs.", ge=0)] | None = None
    token: Annotated[str, describe("Explain the logit of this token, given as text.")] | None = None
    against: Annotated[str, describe("Explain how far --token is ahead of this token.")] | None = None
    token_id: (
        Annotated[int, describe("The same token by its number in the vocabulary.", advanced=True, ge=0)]
        | None
    ) = None
    against_id: (
        Annotated[int, describe("The same other token by its number.", advanced=True, ge=0)] | None
    ) = None
    attention: (
        Annotated[
            str, describe("Explain a head's attention score, given as LAYER.HEAD:QUERY:KEY, all from 0.")
        ]
        | None
    ) = None
    direction: (
        Annotated[
            str,
            describe(
                "Explain a direction of the residual stream: a .safetensors or .json file with one vector.",
                place=True,
            ),
        ]
        | None
    ) = None
    direction_layer: (
        Annotated[int, describe("Block behind which the direction is read.", advanced=True, ge=0)] | None
    ) = None
    layer: (
        Annotated[
            int, describe("Block of the SAE the feature is of; default is the topmost of --sae-path.", ge=0)
        ]
        | None
    ) = None
    site: (
        Annotated[SiteKind, describe("Site of that SAE, where a block has several.", advanced=True)] | None
    ) = None
    position: Annotated[
        int, describe("Position of the target in the prompt, from 0; negative ones count from the end.")
    ] = -1
    hops: Annotated[int, describe("How many SAEs down to go.", ge=1, le=MAX_HOPS)] = DEFAULT_HOPS
    parents: Annotated[
        int, describe("Nodes of a hop that are explained in the next one.", ge=1, le=MAX_PARENTS)
    ] = DEFAULT_PARENTS
    shown: Annotated[int, describe("Strongest edges kept.", unit="edges", ge=1, le=MAX_SHOWN)] = DEFAULT_SHOWN
    mlp: Annotated[
        MlpRule,
        describe(
            "How attributions pass an MLP: gradient follows what removing a part does, gates makes them sum to the "
            "value.",
            advanced=True,
        ),
    ] = "gradient"
    verify: Annotated[
        bool, describe("Measure every edge on the running model, beside matched random features.")
    ] = True
    out: Annotated[str, describe("File the graph is written to.", place=True)] | None = None
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    dtype: Annotated[
        Dtype, describe("Precision the model runs in; attributions are computed in float32.", place=True)
    ] = "float32"
    device: Annotated[str, describe("Where to compute: auto, cpu, cuda …", advanced=True)] = "auto"
    memory_mb: (
        Annotated[
            int,
            describe(
                "Memory the graph may take beside the model; default is what is free.",
                unit="MB",
                advanced=True,
                ge=1,
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.token is not None and self.token_id is not None:
            raise _two("--token", "--token-id")
        if self.against is not None and self.against_id is not None:
            raise _two("--against", "--against-id")
        given = self._targets()
        if len(given) > 1:
            raise _two(*given[:2])
        against = self.against is not None or self.against_id is not None
        if against and given != ["--token"]:
            raise MicroscopeError(
                "bad_target",
                "--against compares two tokens, and no --token was given.",
                "Add --token with the token that should be ahead.",
            )
        if self.attention is not None:
            self.attention_score()

    def _targets(self) -> list[str]:
        options = {
            "--feature": self.feature is not None,
            "--token": self.token is not None or self.token_id is not None,
            "--attention": self.attention is not None,
            "--direction": self.direction is not None,
        }
        return [name for name, given in options.items() if given]

    def require_target(self) -> None:
        """Whether something is to be explained.

        Raises:
            MicroscopeError: ``bad_target``.
        """
        if not self._targets():
            raise MicroscopeError(
                "bad_target",
                "Nothing to explain was given.",
                "Give one of --feature, --token, --attention and --direction.",
            )
        if self.direction is not None and self.direction_layer is None:
            raise MicroscopeError(
                "bad_target",
                "A direction was given, but not the block behind which it is read.",
                "Add --direction-layer.",
            )

    def attention_score(self) -> AttentionScore:
        """The head and the positions of ``attention``.

        Raises:
            MicroscopeError: ``bad_target``.
        """
        match = _ATTENTION.fullmatch(self.attention or "")
        if match is None:
            raise MicroscopeError(
                "bad_target",
                f"{(self.attention or '')[:80]!r} names no attention score.",
                "Write LAYER.HEAD:QUERY:KEY, for example 5.3:11:4; negative positions count from the end.",
            )
        return AttentionScore(*map(int, match.groups()))


def _two(first: str, second: str) -> MicroscopeError:
    return MicroscopeError(
        "two_targets",
        f"{first} and {second} were both given; one thing is explained at a time.",
        "Choose one.",
    )
