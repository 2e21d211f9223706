"""What may be named as a dataset: one of the Hub, nothing else."""

from __future__ import annotations

import re

from microscope.errors import MicroscopeError

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}")
# Readers that the datasets library knows by a bare name: they read whatever lies in the working folder.
READERS = frozenset(
    (
        *("csv", "json", "pandas", "parquet", "arrow", "text", "conll", "xml", "hdf5", "webdataset", "lance"),
        *("imagefolder", "audiofolder", "videofolder", "meshfolder", "pdffolder", "niftifolder", "eval"),
        *("tsfile", "iceberg", "vortex", "mmcif", "pdb", "genbank", "fasta", "fastq", "harbor"),
        *("sql", "spark", "generator", "cache", "folder_based_builder"),
    )
)


def check_dataset_id(reference: str) -> str:
    """The id of a dataset of the Hub as it stands.

    Raises:
        MicroscopeError: ``bad_dataset`` for paths, addresses, and names that mean a reader of local files.
    """
    if not _HUB_ID.fullmatch(reference) or ".." in reference or "--" in reference:
        raise MicroscopeError(
            "bad_dataset",
            f"'{reference[:120]}' is no id of a dataset of the Hub.",
            "Write owner/name, for example roneneldan/TinyStories; files are named with --text.",
        )
    if reference.lower() in READERS:
        raise MicroscopeError(
            "bad_dataset",
            f"'{reference}' is the datasets library's reader for local files, not a dataset of the Hub.",
            "Name files with --text; a dataset of that name needs its owner: owner/name.",
        )
    return reference
