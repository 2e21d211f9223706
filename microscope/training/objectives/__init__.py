"""How SAEs are trained: one file per architecture, named in :mod:`microscope.params.architectures`."""

from microscope.training.objectives.base import LossContext, Objective, StepLoss, variance
from microscope.training.objectives.registry import objective_class

__all__ = ["LossContext", "Objective", "StepLoss", "objective_class", "variance"]
