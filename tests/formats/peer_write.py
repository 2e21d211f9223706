"""Run by the peers' own Python: write SAEs with their packages, with inputs and their own reconstructions.

python peer_write.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

D, N, D_OUT = 16, 48, 12


def rows() -> torch.Tensor:
    return torch.randn(64, D, generator=torch.Generator().manual_seed(0)) * 3 + 0.5


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name.endswith("threshold") and not name.startswith("log"):
                parameter.abs_().add_(0.2)


def keep(folder: Path, module: torch.nn.Module) -> None:
    """Store inputs, the peer's reconstruction and its activations."""
    x = rows()
    with torch.no_grad():
        tensors = {"x": x, "out": module(x), "acts": module.encode(x)}
    save_file({k: v.float().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")


def saelens(root: Path) -> None:
    import sae_lens.saes as s
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

    base = {"d_in": D, "d_sae": N, "device": "cpu", "dtype": "float32"}
    meta = SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_resid_post")
    made = {
        "topk": s.TopKSAE(s.TopKSAEConfig(**base, k=5, metadata=meta)),
        "topk-no-pre-bias": s.TopKSAE(
            s.TopKSAEConfig(**base, k=5, apply_b_dec_to_input=False, metadata=meta)
        ),
        "topk-by-norm": s.TopKSAE(
            s.TopKSAEConfig(**base, k=5, rescale_acts_by_decoder_norm=True, metadata=meta)
        ),
        "topk-layer-norm": s.TopKSAE(
            s.TopKSAEConfig(**base, k=5, normalize_activations="layer_norm", metadata=meta)
        ),
        "topk-constant-norm": s.TopKSAE(
            s.TopKSAEConfig(**base, k=5, normalize_activations="constant_norm_rescale", metadata=meta)
        ),
        "jumprelu": s.JumpReLUSAE(s.JumpReLUSAEConfig(**base, metadata=meta)),
        "gated": s.GatedSAE(s.GatedSAEConfig(**base, metadata=meta)),
        "standard": s.StandardSAE(s.StandardSAEConfig(**base, metadata=meta)),
        "transcoder": Transcoder(
            TranscoderConfig(**base, d_out=D_OUT, apply_b_dec_to_input=False, metadata=meta)
        ),
    }
    for number, (name, sae) in enumerate(made.items()):
        randomise(sae, number)
        folder = root / f"saelens-{name}"
        sae.save_model(folder)
        keep(folder, sae)


def sparsify(root: Path) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    for name, options in {
        "sae": {},
        "transcoder": {"transcode": True},
        "skip": {"transcode": True, "skip_connection": True},
    }.items():
        coder = SparseCoder(D, SparseCoderConfig(num_latents=N, k=5, **options))
        randomise(coder, 40)
        folder = root / f"sparsify-{name}" / "layers.3"
        coder.save_to_disk(folder)
        x = rows()
        with torch.no_grad():
            codes = coder.encode(x)
            acts = torch.zeros(len(x), N).scatter_(1, codes.top_indices, codes.top_acts)
            out = coder(x, y=torch.zeros_like(x) if options else None).sae_out
        save_file({"x": x, "out": out.float(), "acts": acts.float()}, folder / "expected.safetensors")


def dictionary_learning(root: Path) -> None:
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoder": d.AutoEncoder(D, N),
        "AutoEncoderNew": d.AutoEncoderNew(D, N),
        "GatedAutoEncoder": d.GatedAutoEncoder(D, N),
        "JumpReluAutoEncoder": d.JumpReluAutoEncoder(D, N),
        "AutoEncoderTopK": AutoEncoderTopK(D, N, 5),
        "BatchTopKSAE": BatchTopKSAE(D, N, 5),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D, N, 5, [16, 32]),
    }
    for number, (name, sae) in enumerate(made.items()):
        randomise(sae, 80 + number)
        if hasattr(sae, "threshold") and name != "JumpReluAutoEncoder":
            sae.threshold = torch.tensor(0.4)
        folder = root / f"dictionary_learning-{name}"
        folder.mkdir(parents=True)
        torch.save(sae.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name,
            "layer": 3,
            "submodule_name": "resid_post_layer_3",
            "lm_name": "gpt2",
            "k": 5,
        }
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        keep(folder, sae)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for write in (saelens, sparsify, dictionary_learning):
        write(target)
