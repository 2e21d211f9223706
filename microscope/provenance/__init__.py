"""Where a feature, a token or an attention score comes from: attribution across layers, checked on the running model."""

from microscope.provenance.attended import attended
from microscope.provenance.explain import Limits, explain

__all__ = ["Limits", "attended", "explain"]
