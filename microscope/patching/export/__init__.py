"""Patches as files other programs load, one module per target."""

from microscope.patching.export.manifest import ExportManifest, read_manifest
from microscope.patching.export.run import export_patch, traits_of

__all__ = ["ExportManifest", "export_patch", "read_manifest", "traits_of"]
