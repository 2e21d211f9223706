"""Looking at files of strangers before anything else reads them. No torch, no code of theirs, bounded memory.

What a file is called says what its sender believes; what it contains decides. Everything here raises
:class:`~microscope.errors.MicroscopeError` and nothing else, whatever the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.lazy import on_first_use
from microscope.quarantine.archives import extract_zip
from microscope.quarantine.content import foreign_content, refuse_foreign
from microscope.quarantine.documents import check_json
from microscope.quarantine.folders import check_file, check_folder
from microscope.quarantine.tensors import check_safetensors

if TYPE_CHECKING:
    from microscope.quarantine.corpora import check_corpus

__all__ = [
    "check_corpus",
    "check_file",
    "check_folder",
    "check_json",
    "check_safetensors",
    "extract_zip",
    "foreign_content",
    "refuse_foreign",
]

# It reads texts with what recordings read them with, which in turn looks at files with the rest of this package.
__getattr__ = on_first_use(__name__, {"check_corpus": "microscope.quarantine.corpora"})
