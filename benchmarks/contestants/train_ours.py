"""Our training step, as the training loop takes it."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch

from benchmarks.child import Measured, Turn, repeated
from benchmarks.contestants.batches import training_batches
from microscope.activations import Recording
from microscope.params import TrainParams
from microscope.threads import only_pieces_divided
from microscope.training.distributed import SINGLE_PROCESS
from microscope.training.objectives import variance
from microscope.training.run import TrainingRun


def fresh_run(
    recording: Recording, *, layer: int, width: int, k: int, batch: int, bfloat16: bool
) -> TrainingRun:
    """An SAE at the beginning of a long training run with the default settings."""
    site = recording.site(f"resid_post.{layer}")
    params = TrainParams(
        activations=str(recording.folder),
        out="unused",
        layer=layer,
        width=(width,),
        k=(k,),
        batch_size=batch,
        tokens=10_000 * batch,
    )
    place = Path(tempfile.gettempdir())  # nothing is written
    device = torch.device("cpu")
    return TrainingRun(
        params, place, recording, site, site, group=SINGLE_PROCESS, device=device, bfloat16=bfloat16
    )


def topk(
    *, rows: str, recording: str, layer: int, width: int, k: int, batch: int, steps: int, bfloat16: bool
) -> Turn:
    """Everything a step does: selection, loss, gradients, Adam, dead latents, with AuxK switched on."""
    source, _ = training_batches(rows, batch)
    run = fresh_run(Recording(recording), layer=layer, width=width, k=k, batch=batch, bfloat16=bfloat16)
    number = itertools.count()

    def step() -> None:
        u = next(source)
        run.step(next(number), u, u, variance(u))

    return as_trained(repeated(step, steps, batch, loop=True))


def as_trained(turn: Turn) -> Turn:
    """A turn of steps on the threads the training loop gives them."""

    def within() -> Measured:
        with only_pieces_divided():
            return turn()

    return within
