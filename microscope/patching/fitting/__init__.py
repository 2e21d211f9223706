"""Low-rank updates that come as near as weights can to an edit they cannot hold."""

from microscope.patching.fitting.fit import FitOptions, FitReport, fit
from microscope.patching.fitting.samples import SeenText, TextWindow, held_out_windows, training_windows

__all__ = ["FitOptions", "FitReport", "SeenText", "TextWindow", "fit", "held_out_windows", "training_windows"]
