"""Measured recipes for training: a preset fills in parameters and says what came of them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

PresetName = Literal["k32", "k64"]


class Preset(Struct, frozen=True, kw_only=True):
    """Parameters, and what they gave where they were measured.

    ``fvu`` is the held-out fraction of variance unexplained (attention sinks and special tokens
    excluded) and ``minutes`` the training time, on the recording and machine that ``measured`` names.
    """

    title: str
    values: dict[str, Any]
    fvu: float
    minutes: float
    measured: str


_RECIPE = {
    "arch": "topk",
    "width": [8192],
    "tokens": 3_000_000,
    "batch_size": 1024,
    "warmup": 0.0502,
}
_RECORDING = "SmolLM2-135M block 15, 589k distinct tokens of State of the Union addresses"

PRESETS: dict[str, Preset] = {
    "k32": Preset(
        title="32 active latents",
        values={**_RECIPE, "k": [32], "tokens": 4_000_000},
        fvu=0.127,
        minutes=5.8,
        measured=f"{_RECORDING}, one thread of a busy Intel Xeon",
    ),
    "k64": Preset(
        title="64 active latents: less left unexplained",
        values={**_RECIPE, "k": [64]},
        fvu=0.101,
        minutes=4.7,
        measured=f"{_RECORDING}, one thread of a busy Intel Xeon",
    ),
}
