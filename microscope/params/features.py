"""What is known about a feature, and the files it is kept in; no torch."""

from __future__ import annotations

import msgspec

from microscope.params.analyses import Result

HISTOGRAM_BINS = 30
DETAILS, ANALYSIS = "details.jsonl", "analysis.json"
TABLE, EXAMPLES, TOKENS, NEIGHBOURS = (
    "features.parquet",
    "examples.parquet",
    "tokens.parquet",
    "neighbours.parquet",
)


class TokenMean(msgspec.Struct, kw_only=True):
    """A token a feature fires on: mean activation where it fires, and how often."""

    token: int
    text: str
    mean: float
    count: int


class TokenWeight(msgspec.Struct, kw_only=True):
    """A next token and the feature's effect on its logit per unit of activation."""

    token: int
    text: str
    weight: float


class Example(msgspec.Struct, kw_only=True):
    """A stretch of text around a peak: token texts and this feature's activation on each.

    Of a character of several tokens the last one has the text, and those before have none.

    ``group`` is 0 among the strongest; others are a random sample by the quantile of their peak, 1 the
    strongest quantile.
    """

    doc: int
    pos: int
    peak: int
    max: float
    texts: list[str]
    values: list[float]
    group: int = 0


class Neighbour(msgspec.Struct, kw_only=True):
    """Another feature of the SAE and the cosine between the two directions."""

    index: int
    cosine: float


class Partner(msgspec.Struct, kw_only=True):
    """A feature that fires on the same tokens: the share of this one's firings it joins, over chance."""

    index: int
    share: float
    lift: float


class FeatureDetails(msgspec.Struct, kw_only=True):
    """Everything known about one feature; one line of ``details.jsonl``.

    ``density`` is the share it fires on of the tokens that the SAE's filter keeps; ``p999`` the 99.9th percentile of its activation
    where it fires; ``histogram`` counts firings in thirty equal bins up to ``max_activation``;
    ``decoder_norm`` is the length one unit of activation adds to the residual stream, in raw units;
    ``examples`` are the strongest windows, ``quantile_examples`` a random sample over all strengths; ``more`` is
    what analyses of other packages found, by their names.
    """

    index: int
    density: float
    firings: int
    max_activation: float
    mean_activation: float
    p999: float
    dead: bool
    histogram: list[int]
    top_tokens: list[TokenMean]
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    examples: list[Example]
    decoder_norm: float
    encoder_decoder_cosine: float
    quantile_examples: list[Example] = []
    decoder_neighbours: list[Neighbour] = []
    encoder_neighbours: list[Neighbour] = []
    partners: list[Partner] = []
    more: dict[str, Result] = {}


class AddedAnalysis(msgspec.Struct, kw_only=True):
    """An analysis of another package, and how its results are shown.

    Each result is one value, or rows of values under ``columns`` where it has any; ``error`` says why there are
    none from some feature on.
    """

    name: str
    title: str
    description: str
    package: str
    columns: list[str] = []
    error: str = ""


class Analysis(msgspec.Struct, kw_only=True):
    """Summary of a run; ``analysis.json``.

    ``tokens`` were read; ``counted`` of them the SAE's token filter keeps, and ``filter_rule`` says in words
    what it leaves out. ``analyses`` are those of other packages.
    """

    sae: str
    recording: str
    site: str
    n_features: int
    dead: int
    tokens: int
    counted: int = 0
    filter_rule: str = ""
    context_length: int
    window: int
    histogram_bins: int = HISTOGRAM_BINS
    quantiles: int = 0
    seconds: float = 0.0
    features_per_second: float = 0.0
    analyses: list[AddedAnalysis] = []
