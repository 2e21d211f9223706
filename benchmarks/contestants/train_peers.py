"""TopK training steps of the peers, and the product none can avoid. Runs in the peers' environment."""

from __future__ import annotations

import itertools
import os

import torch

from benchmarks.child import Turn, repeated
from benchmarks.contestants.batches import training_batches

_RATE = 1e-3


def encoder_product(*, rows: str, width: int, batch: int, steps: int, dtype: str) -> Turn:
    """Floor: ``x·W_encᵀ`` of one batch."""
    source, mean = training_batches(rows, batch)
    kind = getattr(torch, dtype)
    x, weight = next(source).to(kind), torch.randn(width, len(mean)).to(kind)
    return repeated(lambda: torch.nn.functional.linear(x, weight), steps, batch, loop=True)


def sparsify(*, rows: str, width: int, k: int, batch: int, steps: int) -> Turn:
    """sparsify's SparseCoder as its trainer steps it, with torch's Adam (its own default needs a download)."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    source, mean = training_batches(rows, batch)
    coder = SparseCoder(len(mean), SparseCoderConfig(num_latents=width, k=k))
    coder.b_dec.data.copy_(mean)
    optimiser = torch.optim.Adam(coder.parameters(), lr=_RATE)

    def step() -> None:
        coder(next(source)).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return repeated(step, steps, batch, loop=True)


def saelens(*, rows: str, width: int, k: int, batch: int, steps: int, autocast: bool) -> Turn:
    """SAELens's TopK SAE stepped by its own trainer."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    source, mean = training_batches(rows, batch)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=len(mean), d_sae=width, k=k, device="cpu", dtype="float32")
    )
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=batch,
        lr=_RATE,
        lr_end=_RATE,
        device="cpu",
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, source)

    def step() -> None:
        trainer.step(next(source))
        trainer.n_training_steps += 1

    return repeated(step, steps, batch, loop=True)


def dictionary_learning(*, rows: str, width: int, k: int, batch: int, steps: int) -> Turn:
    """dictionary_learning's TopKTrainer."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    source, mean = training_batches(rows, batch)
    trainer = TopKTrainer(
        steps=10**6,
        activation_dim=len(mean),
        dict_size=width,
        k=k,
        layer=0,
        lm_name="none",
        device="cpu",
        seed=0,
        warmup_steps=10,
        lr=_RATE,
    )
    number = itertools.count(1)  # at step 0 it looks for its geometric median first
    return repeated(lambda: trainer.update(next(number), next(source)), steps, batch, loop=True)
