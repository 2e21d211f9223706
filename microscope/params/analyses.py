"""What `microscope features` finds out about each feature: names and what is shown of them, no torch."""

from __future__ import annotations

import functools
from typing import Literal

from microscope.params.extensions import Declaration, Registry

Value = bool | int | float | str | None
# One value, or rows of values.
Result = Value | list[list[Value]]
# What an analysis looks at: firings on the recorded text, the text itself, the SAE's weights, or the model.
Source = Literal["firings", "text", "weights", "model"]


class FeatureAnalysis(Declaration, frozen=True, kw_only=True):
    """One analysis of features; other packages declare theirs under ``microscope.analyses``.

    ``compute`` names a :class:`~microscope.features.Accumulator`. What it finds is called ``title`` and shown as
    one value per feature, or as a table where there are ``columns``. A built-in one ``writes`` fields of
    :class:`~microscope.params.features.FeatureDetails`, which have places of their own on a feature's page.
    """

    title: str
    reads: tuple[Source, ...]
    compute: str
    columns: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def check(self) -> None:
        if self.package and self.writes:
            raise ValueError("only a built-in analysis writes fields of its own")
        if not self.title:
            raise ValueError("it has no title")


BUILT_IN = (
    FeatureAnalysis(
        name="activation",
        title="Activations",
        description="How often and how strongly a feature fires.",
        reads=("firings",),
        compute="microscope.features.activation:Activation",
        writes=("density", "firings", "max_activation", "mean_activation", "p999", "dead", "histogram"),
    ),
    FeatureAnalysis(
        name="tokens",
        title="Tokens it fires on",
        description="The tokens on which a feature is strongest in sum.",
        reads=("firings", "text"),
        compute="microscope.features.activation:TopTokens",
        writes=("top_tokens",),
    ),
    FeatureAnalysis(
        name="examples",
        title="Examples",
        description="The strongest stretches of text, and a sample over all strengths.",
        reads=("firings", "text"),
        compute="microscope.features.examples:ExampleTexts",
        writes=("examples", "quantile_examples"),
    ),
    FeatureAnalysis(
        name="partners",
        title="Fire together",
        description="Features that fire on the same tokens, more often than by chance.",
        reads=("firings",),
        compute="microscope.features.coactivation:Partners",
        writes=("partners",),
    ),
    FeatureAnalysis(
        name="logits",
        title="Promotes and suppresses",
        description="Next tokens by the feature's direct effect on their logits.",
        reads=("weights", "model"),
        compute="microscope.features.logits:LogitLens",
        writes=("promoted", "suppressed"),
    ),
    FeatureAnalysis(
        name="neighbours",
        title="Write and read alike",
        description="Features with the most similar decoder and encoder directions.",
        reads=("weights",),
        compute="microscope.features.neighbours:Neighbours",
        writes=("decoder_neighbours", "encoder_neighbours"),
    ),
    FeatureAnalysis(
        name="directions",
        title="Directions",
        description="Length of the decoder direction, and its cosine with the encoder's.",
        reads=("weights",),
        compute="microscope.features.neighbours:Directions",
        writes=("decoder_norm", "encoder_decoder_cosine"),
    ),
)


@functools.cache
def feature_analyses() -> Registry[FeatureAnalysis]:
    """Every analysis by name."""
    return Registry("analysis", "microscope.analyses", FeatureAnalysis, BUILT_IN)
