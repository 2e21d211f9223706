"""The activation store: writing, reading shuffled, and feeding a training run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import inputs
from benchmarks.contest import OWN, Contest, Contestant, Settings

_WIDTH = 576
_LAYOUTS = (
    ("recording", "microscope, recording", "ours"),
    ("lists", "Parquet, fixed-size lists", "peer"),
    ("array", "plain array", "floor"),
)
_PACKAGES = ("pyarrow", "numpy")


def contests(settings: Settings) -> Iterator[Contest]:
    """Writing, reading, feeding."""
    settings.data.mkdir(parents=True, exist_ok=True)
    rows = 40_000 if settings.quick else 400_000
    shared = {"folder": str(settings.data), "rows": rows, "width": _WIDTH}
    size = f"{rows:,} rows of {_WIDTH} float16 ({rows * _WIDTH * 2 / 1e6:,.0f} MB)"
    yield Contest(
        "Store, writing",
        "MB/s",
        f"{size}, not waiting for the disk to confirm. Ours also keeps sums for the statistics.",
        tuple(
            Contestant(
                name,
                "store:writing",
                {**shared, "layout": layout},
                role,
                _PACKAGES,
                environment=OWN,
                compared=role == "ours",
            )
            for layout, name, role in _LAYOUTS
        ),
    )
    yield Contest(
        "Store, shuffled reading",
        "MB/s",
        f"{size} given out once as shuffled float16 batches of 4,096 rows, opening the files included. With a "
        "buffer that holds all rows the order is uniformly random; the small buffer holds a quarter.",
        tuple(_readers(shared, rows * _WIDTH * 2)),
    )
    yield Contest(
        "Store, feeding the training step",
        "tokens/s",
        "Steps of a TopK SAE with 4,096 latents (k 32, bfloat16 search) on shuffled batches from a recording, "
        "and on one batch that stays in memory.",
        tuple(_feeding(settings)),
    )


def _readers(shared: dict[str, object], payload: int) -> Iterator[Contestant]:
    for layout, name, role in _LAYOUTS:
        small = [(f"{name}, small buffer", payload // 4)] if layout != "array" else []
        for title, buffer in [(name if small else "plain array, memory-mapped", 2 * payload), *small]:
            yield Contestant(
                title,
                "store:reading",
                {**shared, "layout": layout, "size": 4096, "buffer": buffer},
                role,
                _PACKAGES,
                environment=OWN,
                compared=role == "ours",
            )


def _feeding(settings: Settings) -> Iterator[Contestant]:
    recording = inputs.recording(settings)
    options = {
        "recording": str(recording),
        "layer": inputs.LAYER,
        "width": 4096,
        "k": 32,
        "batch": 1024,
        "steps": 4 if settings.quick else 40,
    }
    payload = sum(file.stat().st_size for file in recording.glob("train-*.parquet"))
    for name, buffer, stored in (
        ("from a recording", 2 * payload, True),
        ("from a recording, small buffer", payload // 4, True),
        ("from memory", 2 * payload, False),
    ):
        yield Contestant(
            name,
            "feeding:training",
            {**options, "buffer": buffer, "stored": stored},
            "ours" if stored else "floor",
            ("torch", "pyarrow"),
            compared=stored,
        )
