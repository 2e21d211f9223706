"""What each feature of an SAE does."""

from microscope.features.analyzer import FeatureAnalyzer
from microscope.features.details import Analysis, FeatureDetails
from microscope.features.run import analyse

__all__ = ["Analysis", "FeatureAnalyzer", "FeatureDetails", "analyse"]
