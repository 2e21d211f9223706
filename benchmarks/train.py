"""The TopK training step against peers and against the encoder's product alone."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import inputs
from benchmarks.contest import Contest, Contestant, Settings

K = 32
_ABOUT = (
    "One optimiser step on batches of {batch:,} activations (d 576, block 15) that are in memory already, "
    "k {k}; every round begins with a step that is not counted. Ours includes AuxK, the count of dead latents and the choice of winners. “bfloat16 search” looks "
    "for winners in bfloat16, decides by float32, and so selects what float32 selects."
)


def contests(settings: Settings) -> Iterator[Contest]:
    """One contest per width; a quick run takes smaller batches."""
    batch = 1024 if settings.quick else 4096
    for width in (4096, 16384):
        yield Contest(
            f"Training step, TopK, {width:,} latents",
            "tokens/s",
            _ABOUT.format(batch=batch, k=K),
            tuple(_contestants(settings, width, batch)),
        )


def _contestants(settings: Settings, width: int, batch: int) -> Iterator[Contestant]:
    shared = {
        "rows": str(inputs.rows_file(settings)),
        "width": width,
        "batch": batch,
        "steps": 1 if settings.quick or width > 4096 else 3,
    }
    sae = {**shared, "k": K}
    ours = {**sae, "recording": str(inputs.recording(settings)), "layer": inputs.LAYER}
    for name, bfloat16 in (("microscope, float32", False), ("microscope, bfloat16 search", True)):
        yield Contestant(
            name, "train_ours:topk", {**ours, "bfloat16": bfloat16}, packages=("torch",), compared=True
        )
    yield Contestant("sparsify", "train_peers:sparsify", sae, "peer", ("eai-sparsify", "torch"))
    for name, autocast in (("SAELens", False), ("SAELens, bfloat16 autocast", True)):
        options = {**sae, "autocast": autocast}
        yield Contestant(name, "train_peers:saelens", options, "peer", ("sae-lens", "torch"))
    yield Contestant(
        "dictionary_learning",
        "train_peers:dictionary_learning",
        sae,
        "peer",
        ("dictionary-learning", "torch"),
    )
    for dtype in ("float32", "bfloat16"):
        options = {**shared, "dtype": dtype}
        yield Contestant(
            f"encoder product alone, {dtype}", "train_peers:encoder_product", options, "floor", ("torch",)
        )
