"""The live path: a toggle's compute, a generated token, and the round trip through the whole portal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import inputs, live_compute, toggle
from benchmarks.contest import Settings
from benchmarks.report import Section, footer
from microscope.models import LoadedModel, load_model

_PROMPT_TOKENS = 128
_Measure = Callable[[LoadedModel, str, Settings], dict[str, dict[str, float]]]


def sections(settings: Settings) -> Iterator[Section]:
    """Compute in both precisions, then round trips."""
    for dtype in ("float32", "bfloat16"):
        title = f"Live, compute of a toggle, {dtype}"
        yield Section(title, lambda d=dtype, t=title: _compute(settings, d, t, _toggles, _TOGGLE))
        title = f"Live, a generated token, {dtype}"
        yield Section(title, lambda d=dtype, t=title: _compute(settings, d, t, _decoding, _TOKEN))
    title = "Live, round trips"
    yield Section(title, lambda: _round_trips(settings, title))


_TOGGLE = (
    f"One edit at block {live_compute.LAYER} of SmolLM2-135M with a strength not seen before, on a prompt of "
    f"{_PROMPT_TOKENS} tokens, to the next token's logits. Time as a ratio to the plain Hugging Face forward pass."
)
_TOKEN = "A greedily generated token with keys and values kept, as a ratio to plain Hugging Face."


def _toggles(loaded: LoadedModel, prompt: str, settings: Settings) -> dict[str, dict[str, float]]:
    return live_compute.toggles(loaded, prompt, _PROMPT_TOKENS, settings.rounds)


def _decoding(loaded: LoadedModel, prompt: str, settings: Settings) -> dict[str, dict[str, float]]:
    return live_compute.decoding(loaded, prompt, settings.rounds, 8 if settings.quick else 24)


def _compute(settings: Settings, dtype: str, title: str, measure: _Measure, about: str) -> str:
    torch.set_num_threads(settings.threads)
    loaded = load_model(str(inputs.model_folder(settings)), dtype=dtype, device="cpu")
    speech = min(inputs.corpus_folder(settings).rglob("*.txt"))
    rows = measure(loaded, speech.read_text()[:4000], settings)
    lines = ["| | ms | time ÷ plain | spread |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {r['ms']:.1f} | {r['ratio']:.3f} | {r['spread']:.2f} |" for name, r in rows.items()
    ]
    return "\n".join([f"## {title}", "", about, "", *lines, "", footer(settings, settings.rounds)])


def _round_trips(settings: Settings, title: str) -> str:
    model, corpus = inputs.model_file(settings), inputs.corpus_folder(settings)
    with tempfile.TemporaryDirectory(prefix="toggle-") as folder:
        data = Path(folder)
        for source in (model, corpus):  # where the portal looks before it downloads
            target = data / source.relative_to(settings.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        rows = toggle.run(
            users=[1] if settings.quick else [1, 4, 8],
            toggles=5 if settings.quick else 100,
            tokens=32,
            data_dir=data,
        )
    about = (
        "From sending a plan over a WebSocket to having its answer, on loopback, in ms; every state is new."
    )
    return "\n".join([f"## {title}", "", about, "", toggle.table(rows), "", footer(settings, 1)])
