"""Recording activations to disk against the truncated forward pass and against other libraries."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import inputs
from benchmarks.contest import Contest, Contestant, Settings

_ROWS = 16
_LAYERS = (5, 10, inputs.LAYER)


def contests(settings: Settings) -> Iterator[Contest]:
    """One site against everybody; three sites against the deepest."""
    yield Contest(
        "Trace to disk",
        "tokens/s",
        f"Residual stream after block {inputs.LAYER} of SmolLM2-135M in bfloat16, contexts of {inputs.CONTEXT} "
        f"tokens, {_ROWS} at a time. Ours reads and tokenises text and writes Parquet; the others begin with "
        "tokens, and only SAELens's runner writes.",
        (*_ours(settings), *_others(settings)),
    )
    yield Contest(
        "Trace to disk, three sites",
        "tokens/s",
        f"Blocks {', '.join(map(str, _LAYERS))} in one pass, against block {inputs.LAYER} alone.",
        (
            _recorder(settings, "three sites in one pass", _LAYERS),
            _recorder(settings, "the deepest alone", _LAYERS[-1:]),
        ),
    )


def _contexts(settings: Settings) -> int:
    return 32 if settings.quick else 256


def _recorder(settings: Settings, name: str, layers: tuple[int, ...], processes: int = 1) -> Contestant:
    options = {
        "model": str(inputs.model_folder(settings)),
        "text": str(inputs.pieces_file(settings)),
        "layers": layers,
        "contexts": _contexts(settings),
        "context_length": inputs.CONTEXT,
        "batch_tokens": _ROWS * inputs.CONTEXT,
        "processes": processes,
        "folder": str(settings.data),
    }
    packages = ("torch", "transformers", "pyarrow")
    return Contestant(name, "trace_ours:recording", options, packages=packages, compared=True)


def _ours(settings: Settings) -> Iterator[Contestant]:
    one = _LAYERS[-1:]
    yield _recorder(settings, "microscope, one process", one)
    if settings.threads > 1:
        name = f"microscope, {settings.threads} processes of one thread"
        yield _recorder(settings, name, one, settings.threads)


def _others(settings: Settings) -> Iterator[Contestant]:
    options = {
        "model": str(inputs.model_folder(settings)),
        "tokens": str(inputs.tokens_file(settings)),
        "contexts": _contexts(settings),
        "layer": inputs.LAYER,
        "rows": _ROWS,
    }
    to_disk = {**options, "folder": str(settings.data)}
    peers = (
        ("SAELens, CacheActivationsRunner to disk", "saelens_runner", to_disk, "sae-lens", "peers"),
        ("SAELens, ActivationsStore", "saelens_store", options, "sae-lens", "peers"),
        ("TransformerLens, bridge", "transformer_lens", options, "transformer-lens", "peers"),
        ("nnsight", "nnsight", options, "nnsight", "nnsight"),
    )
    for name, entry, given, package, environment in peers:
        packages = (package, "torch", "transformers")
        yield Contestant(name, f"trace_peers:{entry}", given, "peer", packages, environment=environment)
    name = "Hugging Face forward cut after the block"
    yield Contestant(name, "trace_peers:truncated", options, "floor", ("torch", "transformers"))
