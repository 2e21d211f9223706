"""The analysis of all features of an SAE against SAEDashboard and against one encode pass."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import inputs
from benchmarks.contest import Contest, Contestant, Settings

_PEER_FEATURES = 64


def contests(settings: Settings) -> Iterator[Contest]:
    """One contest on one recording."""
    contexts = 64 if settings.quick else 256
    yield Contest(
        "Feature analysis",
        "features/s",
        f"All 4,096 features of a TopK SAE (k 32) on {contexts * inputs.CONTEXT:,} tokens. Ours reads the "
        "recording and includes loading SAE and model and writing all files; SAEDashboard describes "
        f"{_PEER_FEATURES} features a call, for which it runs the model over the text each time.",
        tuple(_contestants(settings, contexts)),
    )


def _contestants(settings: Settings, contexts: int) -> Iterator[Contestant]:
    folder = inputs.sae_folder(settings)
    shared = {
        "sae": str(folder),
        "recording": str(inputs.recording(settings)),
        "tokens": contexts * inputs.CONTEXT,
    }
    model = str(inputs.model_folder(settings))
    yield Contestant(
        "microscope",
        "features_ours:analysis",
        {**shared, "model": model, "folder": str(settings.data)},
        packages=("torch", "transformers"),
        compared=True,
    )
    yield Contestant(
        "SAEDashboard",
        "features_peers:dashboard",
        {
            "sae": str(inputs.sae_for_saelens(settings)),
            "model": model,
            "tokens": str(inputs.tokens_file(settings)),
            "contexts": contexts,
            "layer": inputs.LAYER,
            "features": _PEER_FEATURES,
        },
        "peer",
        ("sae-dashboard", "sae-lens", "transformer-lens", "torch"),
    )
    yield Contestant("one encode pass", "features_ours:encode_pass", shared, "floor", ("torch",))
