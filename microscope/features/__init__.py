"""What each feature of an SAE does."""

from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.analyzer import FeatureAnalyzer
from microscope.features.run import analyse
from microscope.params.features import Analysis, FeatureDetails

__all__ = ["Accumulator", "Analysis", "AnalysisContext", "FeatureAnalyzer", "FeatureDetails", "analyse"]
