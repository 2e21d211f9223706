"""Parameters of packing a project into one file and taking it out again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from microscope.params.base import JobParams
from microscope.params.fields import describe

BUNDLE_FORMAT, BUNDLE_VERSION = "interpretability-workbench-project", 1
RECORDING_FORMAT = "interpretability-workbench-recording"


class PackParams(JobParams, frozen=True):
    """Pack a project with its files into one archive."""

    listing: Annotated[
        str, describe("JSON with the bundle's document and the folders of its files.", place=True)
    ]
    out: Annotated[str, describe("Folder the archive is written to.", place=True)]
    recordings: Annotated[
        bool, describe("With the recorded activations, by far the largest part; SAEs come in any case.")
    ] = True


class UnpackParams(JobParams, frozen=True):
    """Unpack a project's archive and check every file of it."""

    path: Annotated[str, describe("The archive.", place=True)]
    out: Annotated[str, describe("Empty folder for its contents.", place=True)]
    max_bytes: Annotated[int, describe("Bytes it may unpack to.", unit="bytes", place=True), Meta(ge=1)] = (
        2**40
    )
