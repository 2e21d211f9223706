"""Run by the peers' own Python: write SAEs with their packages, with inputs and their own latents and outputs.

python peer_write.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.formats.peer_cases import CASES, D_OUT, HEADS, TRANSCODERS, Case, D, K, N

SCALE = 0.37


def rows() -> torch.Tensor:
    """Of very different lengths: a constant that is added to a norm shows on the short ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, D, generator=generator) * 3 + 0.5
    return torch.cat([x[:48], x[48:] * 0.02])


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name.endswith("threshold") and not name.startswith("log"):
                parameter.abs_().add_(0.2)


def keep(folder: Path, x: torch.Tensor, acts: torch.Tensor, out: torch.Tensor) -> None:
    """Store inputs, the peer's activations and its reconstruction."""
    tensors = {"x": x, "acts": acts, "out": out}
    save_file(
        {k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / "expected.safetensors"
    )


def write_saelens(case: Case, folder: Path, seed: int) -> None:
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAE, SAEMetadata, TrainingSAE

    trained = case.how in ("checkpoint", "converted", "with_scaler")
    model, config = (get_sae_training_class if trained else get_sae_class)(case.kind)
    hook_z = case.settings.get("reshape_activations") == "hook_z"
    metadata = SAEMetadata(
        model_name="gpt2", hook_name="blocks.3.attn.hook_z" if hook_z else "blocks.3.hook_resid_post"
    )
    more: dict[str, Any] = {"k": K} if "topk" in case.kind else {}
    if case.kind in TRANSCODERS:
        metadata.hook_name_out, more = "blocks.3.hook_mlp_out", {"d_out": D_OUT}
    if case.kind == "matryoshka_batchtopk":
        more["matryoshka_widths"] = [N // 3, N]
    sae = model(config(d_in=D, d_sae=N, metadata=metadata, **more, **case.settings))
    randomise(sae, seed)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.7)
    x = rows()
    if case.how == "inference":
        sae.save_model(folder)
        given = x.view(len(x), HEADS, -1) if hook_z else x
        with torch.no_grad():
            acts = sae.encode(given)
            out = sae(given).reshape(len(x), -1)
        return keep(folder, x, acts, out)
    if case.how == "converted":
        sae.save_inference_model(folder)
        oracle = SAE.load_from_disk(folder)
    elif case.how == "checkpoint":
        assert isinstance(sae, TrainingSAE)
        sae.save_model(folder)
        oracle = sae
        if hasattr(
            sae, "topk_threshold"
        ):  # chosen over the whole batch in training: compare what is used afterwards
            sae.save_inference_model(folder / "after")
            oracle = SAE.load_from_disk(folder / "after")
    else:
        oracle = _with_scaler(case, sae, folder)
    with torch.no_grad():
        keep(folder, x, oracle.encode(x), oracle(x))


def _with_scaler(case: Case, sae: Any, folder: Path) -> Any:
    """A checkpoint whose scaling lies beside it; the oracle is what SAELens itself folds it into."""
    from sae_lens.saes.sae import SAE
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    scaler = ActivationScaler(scaling_factor=SCALE)
    if case.settings["normalize_activations"] == "covariance_whitening":
        generator = torch.Generator().manual_seed(5)
        matrix = torch.eye(D) + 0.2 * torch.randn(D, D, generator=generator)
        mean = torch.randn(D, generator=generator)
        scaler = ActivationScaler(whitening=ActivationWhitening(mean, matrix, torch.linalg.inv(matrix)))
    sae.save_model(folder)
    scaler.save(str(folder / "activation_scaler.json"))
    if scaler.whitening is not None:
        w = scaler.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    else:
        sae.fold_activation_norm_scaling_factor(SCALE)
    sae.save_inference_model(folder / "after")
    return SAE.load_from_disk(folder / "after")


def write_sparsify(case: Case, folder: Path, seed: int) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(D, SparseCoderConfig(num_latents=N, **case.settings))
    randomise(coder, seed)
    folder = folder / "layers.3"
    coder.save_to_disk(folder)
    x = rows()
    with torch.no_grad():
        codes = coder.encode(x)
        acts = torch.zeros(len(x), N).scatter_add_(1, codes.top_indices, codes.top_acts)
        out = coder(x, y=torch.zeros_like(x)).sae_out
    keep(folder, x, acts, out)


def write_dictionary_learning(case: Case, folder: Path, seed: int) -> None:
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D, N, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(D, N, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, N, K, [16, 32]),
    }
    sae = made.get(case.kind, lambda: getattr(d, case.kind)(D, N))()
    randomise(sae, seed)
    if case.kind in made:
        sae.threshold = torch.tensor(case.settings.get("threshold", 0.4))
    folder.mkdir(parents=True)
    torch.save(sae.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": case.kind,
        "layer": 3,
        "submodule_name": "resid_post_layer_3",
        "lm_name": "gpt2",
        "activation_dim": D,
        "dict_size": N,
        "lr": 1e-3,
        "steps": 10,
    }
    if case.kind in made:
        trainer["k"] = K
    buffer = {"d_submodule": D, "io": "out", "n_ctxs": 10, "ctx_len": 8, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    x = rows()
    with torch.no_grad():
        keep(folder, x, sae.encode(x), sae(x))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    writers = {
        "saelens": write_saelens,
        "sparsify": write_sparsify,
        "dictionary_learning": write_dictionary_learning,
    }
    for number, case in enumerate(CASES.values()):
        writers[case.library](case, Path(sys.argv[1]) / case.name, number)
