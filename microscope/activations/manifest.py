"""The self-description of a recording: ``manifest.json`` beside its Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from microscope.errors import MicroscopeError
from microscope.outputs import write_durably

FORMAT = "microscope-activations"
MANIFEST = "manifest.json"
STATISTICS = "statistics.safetensors"

Split = Literal["train", "held_out"]

# Bits of the ``flags`` column.
SPECIAL, BOS, OVERFLOW = 1, 2, 4


class SiteRecord(msgspec.Struct, kw_only=True):
    """One recorded site.

    Norms are L2 norms of whole rows. ``outlier_norm`` is the threshold above which a token counts as
    an attention sink; ``outliers`` of ``tokens`` rows are above it and ``overflowed`` ones did not fit
    float16 (stored as zeros, flagged), ``nonfinite`` of them because they were infinite or no numbers
    (their norm is stored as infinite). ``rms_norm`` and ``gamma`` (|mean| / |standard deviation|)
    are over training rows that are neither.
    """

    site: str
    column: str
    norm_column: str
    width: int
    dtype: Literal["float16"] = "float16"
    median_norm: float = 0.0
    outlier_norm: float = 0.0
    outliers: int = 0
    overflowed: int = 0
    nonfinite: int = 0
    rms_norm: float = 0.0
    gamma: float = 0.0


class ModelRecord(msgspec.Struct, kw_only=True):
    """The model that was recorded."""

    reference: str
    revision: str | None
    fingerprint: str
    family: str
    n_layers: int
    d_model: int
    vocab_size: int
    dtype: str
    quantisation: str | None = None
    tokenizer_hash: str


class SourceRecord(msgspec.Struct, kw_only=True):
    """One of the texts that were mixed: the weight asked for, and what was taken from it."""

    description: str
    weight: float
    documents: int = 0
    tokens: int = 0


class CorpusRecord(msgspec.Struct, kw_only=True):
    """The text that was read. ``segmentation`` is ``documents``, or ``paragraphs`` for corpora of few documents."""

    description: str
    segmentation: Literal["documents", "paragraphs"] = "documents"
    fingerprint: str = ""
    documents: int = 0
    sources: list[SourceRecord] = []


class Shard(msgspec.Struct, kw_only=True):
    file: str
    rows: int


class SplitRecord(msgspec.Struct, kw_only=True):
    """Shards of one split, in documents' order."""

    rows: int = 0
    documents: int = 0
    shards: list[Shard] = []


class Manifest(msgspec.Struct, kw_only=True):
    """Everything a reader must know about a recording.

    It is the record of commits as well: shards, counts and the statistics file it names belong together,
    and all of them become true in the one step that replaces it. ``settings`` are the parameters that
    shape the rows, by name; None in recordings made before they were kept.
    """

    format: str = FORMAT
    version: int = 1
    model: ModelRecord
    corpus: CorpusRecord
    sites: list[SiteRecord]
    context_length: int
    wrapping: tuple[tuple[int, ...], tuple[int, ...]] = (
        (),
        (),
    )  # special tokens before and after every window
    outlier_factor: float
    held_out_share: float
    train: SplitRecord
    held_out: SplitRecord
    settings: dict[str, Any] | None = None
    statistics: str = STATISTICS
    documents_read: int = 0  # how far a resumed recording must skip
    complete: bool = False
    fingerprint: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = {}

    def site(self, name: str) -> SiteRecord:
        """The record of one site.

        Raises:
            MicroscopeError: ``site_not_recorded``.
        """
        for record in self.sites:
            if record.site == name:
                return record
        raise MicroscopeError(
            "site_not_recorded",
            f"The recording has no site {name}.",
            f"It has {', '.join(s.site for s in self.sites)}.",
        )

    def split(self, name: Split) -> SplitRecord:
        return self.train if name == "train" else self.held_out


def read_manifest(folder: Path) -> Manifest:
    """Read a recording's manifest.

    Raises:
        MicroscopeError: ``no_recording`` or ``bad_recording``.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise MicroscopeError(
            "no_recording", f"There is no recording at '{folder}'.", "Make one with `microscope trace`."
        )
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MicroscopeError(
            "bad_recording", f"{path} is not a valid manifest: {error}.", "Record again."
        ) from error
    if manifest.format != FORMAT or manifest.version != 1:
        raise MicroscopeError(
            "bad_recording",
            f"{path} has format {manifest.format} version {manifest.version}, which this version does not read.",
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step, so that a reader never sees half of it."""
    write_durably(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
