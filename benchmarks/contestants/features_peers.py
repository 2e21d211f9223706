"""SAEDashboard's analysis of a few features. Runs in the peers' environment."""

from __future__ import annotations

import itertools
import time

import numpy as np
import torch

from benchmarks.child import Measured, Turn


def dashboard(*, sae: str, model: str, tokens: str, contexts: int, layer: int, features: int) -> Turn:
    """SAEDashboard on an SAE in SAELens's format: every call runs the model over all contexts again."""
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(model, device="cpu", dtype=torch.float32)
    encoder = SAE.load_from_disk(sae, device="cpu")
    name = f"blocks.{layer}.hook_out"
    encoder.cfg.metadata.hook_name = name
    # it folds the decoder's norms, which TopK SAEs allow in this form only; ours are all alike
    encoder.cfg.rescale_acts_by_decoder_norm = True
    windows = torch.from_numpy(np.load(tokens)[:contexts]).long()
    number = itertools.count()

    def turn() -> Measured:
        first = next(number) * features % (encoder.cfg.d_sae - features)
        config = SaeVisConfig(
            hook_point=name,
            features=list(range(first, first + features)),
            minibatch_size_features=features,
            minibatch_size_tokens=32,
            device="cpu",
            dtype="float32",
        )
        started = time.perf_counter()
        SaeVisRunner(config).run(encoder=encoder, model=bridge, tokens=windows)
        return Measured(time.perf_counter() - started, features)

    return turn
