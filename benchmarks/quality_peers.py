"""Run by the peers' own Python: train a TopK SAE with a peer's own code on rows of a file.

python quality_peers.py PEER ROWS.npy OUT.safetensors '{"width": 4096, "k": 32, …}'

The rows are taken in the same seeded order for every peer, the learning rate follows the same schedule
(linear rise, constant, linear fall to zero), and b_dec starts at the mean where the peer lets it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]


class Rows:
    """Batches of rows scaled to a mean square norm of d, shuffled anew every epoch."""

    def __init__(self, path: str, batch: int, seed: int) -> None:
        self._rows = torch.from_numpy(np.load(path))
        sample = self._rows.float()
        self.width = sample.shape[1]
        self.scale = math.sqrt(self.width / sample.square().sum(1).mean().item())
        self.mean = sample.mean(0) * self.scale
        self._batch, self._generator = batch, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(self._rows), generator=self._generator)
            for first in range(0, len(order) - self._batch + 1, self._batch):
                yield self._rows[order[first : first + self._batch]].float() * self.scale


def rate(step: int, spec: dict[str, Any], steps: int) -> float:
    rise = (step + 1) / max(1, round(spec["warmup"] * steps))
    fall = (steps - step) / max(1, round(spec["decay"] * steps))
    return float(spec["lr"] * min(1.0, rise, fall))


def sparsify(rows: Rows, spec: dict[str, Any], steps: int) -> tuple[Weights, Tensor, Tensor]:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(rows.width, SparseCoderConfig(num_latents=spec["width"], k=spec["k"]))
    coder.b_dec.data = rows.mean.clone()
    optimiser = torch.optim.Adam(coder.parameters(), lr=spec["lr"])
    silent = torch.zeros(spec["width"])
    batches = iter(rows)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate(step, spec, steps)
        batch = next(batches)
        dead = silent > spec["dead_after"]
        out = coder(batch, dead_mask=dead if spec["aux"] and dead.any() else None)
        (out.fvu + spec["aux"] * out.auxk_loss).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        silent += len(batch)
        silent[out.latent_indices.flatten()] = 0
    sample = next(batches)[:512]
    with torch.no_grad():
        w = {
            "W_enc": coder.encoder.weight,
            "b_enc": coder.encoder.bias,
            "W_dec": coder.W_dec,
            "b_dec": coder.b_dec,
        }
        return w, sample, coder(sample).sae_out


def saelens(rows: Rows, spec: dict[str, Any], steps: int) -> tuple[Weights, Tensor, Tensor]:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = sae_lens.TopKTrainingSAEConfig(
        d_in=rows.width, d_sae=spec["width"], k=spec["k"], device="cpu", dtype="float32"
    )
    sae = sae_lens.TopKTrainingSAE(config)
    with torch.no_grad():
        sae.b_dec.copy_(rows.mean)
    batches = iter(rows)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * spec["batch"],
            train_batch_size_samples=spec["batch"],
            lr=spec["lr"],
            lr_end=0.0,
            lr_warm_up_steps=max(1, round(spec["warmup"] * steps)),
            lr_decay_steps=round(spec["decay"] * steps),
            dead_feature_window=max(1, spec["dead_after"] // spec["batch"]),
            device="cpu",
            autocast=False,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    for _ in range(steps):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
    sample = next(batches)[:512]
    with torch.no_grad():
        norm = sae.W_dec.norm(dim=-1) if config.rescale_acts_by_decoder_norm else torch.ones(spec["width"])
        w_enc, b_enc = sae.W_enc.T * norm[:, None], sae.b_enc * norm
        if not config.apply_b_dec_to_input:
            b_enc = b_enc + w_enc @ sae.b_dec
        w = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": sae.W_dec / norm[:, None], "b_dec": sae.b_dec}
        return w, sample, sae(sample)


PEERS = {"sparsify": sparsify, "SAELens": saelens}


def main(peer: str, source: str, out: str, text: str) -> None:
    spec = json.loads(text)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    rows = Rows(source, spec["batch"], spec["seed"])
    steps = max(1, spec["tokens"] // spec["batch"])
    started = time.perf_counter()
    weights, sample, reconstruction = PEERS[peer](rows, spec, steps)
    seconds = time.perf_counter() - started
    tensors = {name: value.detach().float().contiguous() for name, value in weights.items()}
    tensors |= {"sample": sample.contiguous(), "reconstruction": reconstruction.detach().contiguous()}
    save_file(tensors, out, metadata={"scale": repr(rows.scale), "seconds": repr(seconds)})


if __name__ == "__main__":
    main(*sys.argv[1:])
