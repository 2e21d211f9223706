"""What is said of models and recordings that cannot be used yet."""

from __future__ import annotations

from apps.core.errors import Refused
from apps.registry.models import LanguageModel, Recording


def model_not_ready(model: LanguageModel) -> Refused:
    """The refusal of work on a model that was not looked at."""
    hint = "Wait until it has been looked at."
    return Refused("model_not_ready", f"The model is {model.state}.", hint, status=409)


def recording_not_ready(recording: Recording, attr: str | None = None) -> Refused:
    """The refusal of work on a recording that is not there; ``attr`` is the field that named it."""
    hint = "Wait until it is ready."
    return Refused("recording_not_ready", f"The recording is {recording.state}.", hint, status=409, attr=attr)
