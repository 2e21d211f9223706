"""The model behind a recording."""

from __future__ import annotations

from microscope.activations.manifest import ModelRecord
from microscope.activations.reader import Recording
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.models.paths import local_reference
from microscope.progress import SILENT, Progress


def load_recorded_model(
    recording: Recording,
    reference: str | None,
    device: str,
    *,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> LoadedModel:
    """The model a recording was made of, computing in float32; with the same rounded weights, if it had such.

    With ``force`` another model is accepted, with a warning: its numbers then describe what an SAE
    does to a model it was not made for. ``dtype`` asks for other weights than the recorded ones, for
    example ``nf4`` for a recording of the whole model.

    Raises:
        MicroscopeError: ``unknown_recorded_model``, ``wrong_model`` when the weights are others, or
            errors of :func:`load_model`.
    """
    wanted = recording.manifest.model
    if not (reference or wanted.reference):
        raise MicroscopeError(
            "unknown_recorded_model",
            "The recording does not say which model it was made of.",
            "Name it with --model.",
        )
    loaded = load_model(
        reference or local_reference(wanted.fingerprint, wanted.reference),
        revision=wanted.revision,
        dtype=dtype or wanted.quantisation or "float32",
        arithmetic="float32",
        device=device,
    )
    if not wanted.fingerprint:
        progress.log("The recording carries no fingerprint: the model cannot be checked.", "warning")
    elif loaded.fingerprint != wanted.fingerprint:
        message = _difference(loaded, wanted)
        if not force:
            raise MicroscopeError(
                "wrong_model", message, "Give the recorded model with --model, or use --force."
            )
        progress.log(message, "warning")
    return loaded


def _difference(loaded: LoadedModel, wanted: ModelRecord) -> str:
    same_place = loaded.reference == wanted.reference
    if same_place and loaded.quantisation != wanted.quantisation:
        recorded, now = (name or "unrounded" for name in (wanted.quantisation, loaded.quantisation))
        return f"{loaded.reference} was recorded with {recorded} weights, and these are {now}."
    return f"{loaded.reference} is not the model that was recorded (its weights have another fingerprint)."
