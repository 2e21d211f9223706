"""Memory of tracing, training and analysis on a corpus, on five times and on ten times as much."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import inputs
from benchmarks.contest import Contest, Contestant, Settings

_LAYER = 1
_LAYERS = (0, _LAYER)
_TIMES = 10
_TRACE_MB, _BUFFER_MB, _ANALYSE_MB = 16, 16, 64
_ABOUT = (
    "{what} {setting}. A model of two blocks of width {width}, so that the rows and not the weights take the "
    "memory: ten times the text is {payload:,.0f} MB of activations more. Memory is what no file backs (pages of "
    "the memory-mapped recording can be dropped at any time), watched all the while; “before” is Python with its "
    "libraries."
)


def contests(settings: Settings) -> Iterator[Contest]:
    """One contest per job, each of three sizes: what grows until a bound is reached, grows no more after it."""
    few = 10_000 if settings.quick else 50_000
    sizes = (few, _TIMES // 2 * few, _TIMES * few)
    folder = str(settings.data)
    model = str(inputs.small_model_folder(settings))
    row = 2 * inputs.SMALL_WIDTH
    grown = (_TIMES - 1) * few * row / 1e6
    trace = {
        "model": model,
        "text": str(inputs.pieces_file(settings)),
        "layers": _LAYERS,
        "memory_mb": _TRACE_MB,
        "folder": folder,
    }
    yield _contest(
        "Memory of tracing",
        f"`microscope trace` of two sites with `--memory-mb {_TRACE_MB}`",
        len(_LAYERS) * grown,
        "tracing",
        {tokens: {**trace, "tokens": tokens} for tokens in sizes},
    )
    recordings = {
        tokens: str(inputs.small_recording(settings, layers=_LAYERS, tokens=tokens)) for tokens in sizes
    }
    train = {"layer": _LAYER, "buffer_mb": _BUFFER_MB, "folder": folder}
    yield _contest(
        "Memory of training",
        f"`microscope train` with `--buffer-mb {_BUFFER_MB}`",
        grown,
        "training",
        {tokens: {**train, "recording": recordings[tokens], "tokens": tokens} for tokens in sizes},
    )
    sae = str(inputs.small_sae(settings, recordings[few], layer=_LAYER))
    analyse = {"sae": sae, "model": model, "memory_mb": _ANALYSE_MB, "folder": folder}
    yield _contest(
        "Memory of feature analysis",
        f"`microscope features` of all 512 features with `--memory-mb {_ANALYSE_MB}`",
        grown,
        "analysing",
        {tokens: {**analyse, "recording": recordings[tokens], "tokens": tokens} for tokens in sizes},
    )


def _contest(
    title: str, setting: str, payload: float, entry: str, options: dict[int, dict[str, object]]
) -> Contest:
    about = _ABOUT.format(what="Peak memory of", setting=setting, width=inputs.SMALL_WIDTH, payload=payload)
    contestants = (
        Contestant(f"{tokens:,} tokens", f"memory:{entry}", given, packages=("torch", "pyarrow"))
        for tokens, given in options.items()
    )
    return Contest(title, "tokens/s", about, tuple(contestants), once=True)
