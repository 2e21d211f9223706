"""Where a model's parts are, found by structure and proven by running it."""

from microscope.models.structure.found import check, complete
from microscope.models.structure.outline import outline

__all__ = ["check", "complete", "outline"]
