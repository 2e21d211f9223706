"""Patches as files other programs load, one module per target."""

from microscope.patching.export.manifest import ExportManifest, read_manifest
from microscope.patching.export.run import export_patch

__all__ = ["ExportManifest", "export_patch", "read_manifest"]
