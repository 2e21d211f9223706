"""Parameters of taking over texts and recordings that others made, and of packing a recording."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from microscope.params.base import JobParams
from microscope.params.fields import describe
from microscope.params.precisions import Dtype


class ImportCorpusParams(JobParams, frozen=True):
    """Check a file of text from the first byte to the last and take it over."""

    path: Annotated[str, describe("File of text, JSON, CSV, Parquet or Arrow.", place=True)]
    out: Annotated[str, describe("Folder the text is taken into.", place=True)]
    text_field: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=80,
            description="Field that holds the text of a row; text stands for its usual names, too.",
        ),
    ] = "text"


class PackRecordingParams(JobParams, frozen=True):
    """Pack a recording into one archive."""

    activations: Annotated[str, describe("Folder of the recording.", place=True)]
    out: Annotated[str, describe("Folder the archive is written to.", place=True)]


class ImportRecordingParams(JobParams, frozen=True):
    """Check a recording value by value, compare it with its model, and take it over."""

    path: Annotated[str, describe("Folder of a recording, or the archive of one.", place=True)]
    out: Annotated[str, describe("Folder the recording is taken into.", place=True)]
    model: (
        Annotated[str, describe("Model it must be of; loaded when no fingerprint is given.", place=True)]
        | None
    ) = None
    revision: Annotated[str, describe("Hub revision of the model.", place=True)] | None = None
    dtype: Annotated[Dtype, describe("Precision of the model it must be of.", place=True)] = "auto"
    model_fingerprint: Annotated[
        str, describe("Fingerprint of the model's weights, where it is known.", place=True)
    ] = ""
    d_model: Annotated[int, describe("Width of the model's residual stream.", place=True)] | None = None
    n_layers: Annotated[int, describe("Number of the model's blocks.", place=True)] | None = None
    max_bytes: Annotated[int, describe("Bytes it may have.", unit="bytes", place=True), Meta(ge=1)] = 2**40
