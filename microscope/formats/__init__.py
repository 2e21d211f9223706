"""Read and write the SAE formats people use; one file per format."""

from microscope.formats.base import Format, Hints
from microscope.formats.importing import export_sae, import_sae
from microscope.formats.registry import FORMATS, read_sae, write_sae
from microscope.formats.settings import Assumptions
from microscope.formats.smoke import SmokeTest, smoke_test, smoke_test_on_model, smoke_test_on_recording

__all__ = [
    "FORMATS",
    "Assumptions",
    "Format",
    "Hints",
    "SmokeTest",
    "export_sae",
    "import_sae",
    "read_sae",
    "smoke_test",
    "smoke_test_on_model",
    "smoke_test_on_recording",
    "write_sae",
]
