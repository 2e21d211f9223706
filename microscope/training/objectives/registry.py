"""The objectives by the name of the architecture they train."""

from __future__ import annotations

from typing import Any

from microscope.errors import MicroscopeError
from microscope.params.architectures import architectures, trained_architectures
from microscope.params.extensions import implementation
from microscope.training.objectives.base import Objective


def objective_class(name: str) -> type[Objective[Any]]:
    """How SAEs of that architecture are trained.

    Raises:
        MicroscopeError: ``unknown_architecture``, ``not_trained`` for one that is only imported, or
            ``bad_extension`` where another package's cannot be loaded.
    """
    declared = architectures().find(name)
    if declared.objective is None:
        raise MicroscopeError(
            "not_trained",
            f"SAEs of the architecture '{name}' are not trained here.",
            f"Choose {', '.join(trained_architectures())}.",
        )
    found: type[Objective[Any]] = implementation(declared, declared.objective, Objective)
    return found
