"""``details.jsonl``: one line per feature, streamed into rows once and read by offset ever after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import msgspec

from apps.core.errors import NotVisible, Refused
from apps.features.models import SEPARATOR, Analysis, Feature
from microscope.params.features import DETAILS, FeatureDetails


class _Text(msgspec.Struct):
    text: str


class _Row(msgspec.Struct):
    """The part of a line that becomes columns; the rest is not even decoded."""

    index: int
    density: float
    firings: int
    max_activation: float
    mean_activation: float
    p999: float
    dead: bool
    top_tokens: list[_Text]
    promoted: list[_Text]
    suppressed: list[_Text]


def rows_of(path: Path, sae_id: UUID) -> Iterator[Feature]:
    """Features of a details file, not saved, in the order of their index.

    Raises:
        Refused: ``bad_analysis`` when a line is no feature or out of order.
    """
    decoder = msgspec.json.Decoder(_Row)
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            try:
                row = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise Refused("bad_analysis", f"{path.name}, line {number + 1}: {error}.") from error
            if row.index != number:
                raise Refused("bad_analysis", f"{path.name}, line {number + 1} is about feature {row.index}.")
            yield Feature(
                sae_id=sae_id,
                index=row.index,
                density=row.density,
                firings=row.firings,
                max_activation=row.max_activation,
                mean_activation=row.mean_activation,
                p999=row.p999,
                dead=row.dead,
                top_tokens_text=_join(row.top_tokens),
                promoted_text=_join(row.promoted),
                suppressed_text=_join(row.suppressed),
                detail_offset=offset,
                detail_length=len(line),
            )
            offset += len(line)


def _join(tokens: list[_Text]) -> str:
    # PostgreSQL stores no NUL in text.
    return SEPARATOR.join(token.text.replace("\0", "") for token in tokens)


def read_details(analysis: Analysis, feature: Feature) -> FeatureDetails:
    """The feature's line, with one seek.

    Raises:
        NotVisible: the file is gone.
        Refused: ``bad_analysis`` when the line cannot be read.
    """
    try:
        with (analysis.artifact.checkout() / DETAILS).open("rb") as stream:
            stream.seek(feature.detail_offset)
            line = stream.read(feature.detail_length)
    except OSError as error:
        raise NotVisible("The analysis of this feature is gone from the disk") from error
    try:
        return msgspec.json.decode(line, type=FeatureDetails)
    except msgspec.MsgspecError as error:
        raise Refused(
            "bad_analysis", f"The details of feature {feature.index} cannot be read: {error}."
        ) from error


def related_indices(details: FeatureDetails) -> set[int]:
    """Every other feature that the details of one speak of."""
    neighbours = {other.index for other in (*details.decoder_neighbours, *details.encoder_neighbours)}
    return neighbours | {other.index for other in details.partners}
