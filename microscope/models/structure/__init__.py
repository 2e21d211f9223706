"""Where a model's parts are, found by structure and proven by running it."""

from microscope.models.structure.found import check, complete, verified
from microscope.models.structure.tree import outline

__all__ = ["check", "complete", "outline", "verified"]
