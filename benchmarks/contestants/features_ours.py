"""Our analysis of all features of an SAE, and the encode pass it cannot do without."""

from __future__ import annotations

import tempfile
import time

import torch

from benchmarks.child import Measured, Turn
from microscope.activations import Recording
from microscope.features.run import analyse
from microscope.params import AnalyseParams
from microscope.sae import load_sae


def analysis(*, sae: str, recording: str, model: str, tokens: int, folder: str) -> Turn:
    """Rounds of whole analyses with all files written; loading the SAE and the model is included."""

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            params = AnalyseParams(
                sae_path=sae,
                activations=recording,
                model=model,
                out=place,
                max_tokens=tokens,
                device="cpu",
            )
            started = time.perf_counter()
            found, _ = analyse(params)
            return Measured(time.perf_counter() - started, found.n_features)

    return turn


def encode_pass(*, sae: str, recording: str, tokens: int) -> Turn:
    """Floor: read the rows and encode them once."""
    loaded, opened = load_sae(sae), Recording(recording)
    site = opened.site(loaded.config.site)

    def turn() -> Measured:
        started = time.perf_counter()
        with torch.inference_mode():
            for chunk in opened.chunks("train", site, max_rows=tokens):
                loaded.encode(torch.from_numpy(chunk.values).float())
        return Measured(time.perf_counter() - started, loaded.config.n_latents)

    return turn
