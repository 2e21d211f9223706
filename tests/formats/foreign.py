"""Small files of every foreign format, made by hand after its layout: what the tests then damage or vary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, N, K = 8, 24, 3
Tensors = dict[str, Any]
Config = dict[str, Any]


def tensors() -> dict[str, torch.Tensor]:
    """``W_enc`` and ``W_dec`` with one row per latent, biases and thresholds."""
    g = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(N, D, generator=g) * 0.4,
        "b_enc": torch.randn(N, generator=g) * 0.2,
        "W_dec": torch.randn(N, D, generator=g) * 0.4,
        "b_dec": torch.randn(D, generator=g) * 0.2,
        "threshold": torch.rand(N, generator=g) * 0.5 + 0.1,
    }


def rows() -> torch.Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(9)) * 2


def _saelens_tensors() -> Tensors:
    t = tensors()
    return {"W_enc": t["W_enc"].T, "W_dec": t["W_dec"], "b_enc": t["b_enc"], "b_dec": t["b_dec"]}


def _linear_tensors(**rest: torch.Tensor) -> Tensors:
    t = tensors()
    named = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}
    return {**named, **rest}


OLD_SAELENS: Config = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": N,
    "hook_name": "blocks.2.hook_resid_post",
    "model_name": "gpt2-small",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "text",
    "sae_lens_training_version": "4.1.0",
}
NEW_SAELENS: Config = {
    "d_in": D,
    "d_sae": N,
    "dtype": "float32",
    "device": "cpu",
    "architecture": "topk",
    "k": K,
    "rescale_acts_by_decoder_norm": False,
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.5.0", "model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post"},
}
SPARSIFY: Config = {
    "activation": "topk",
    "expansion_factor": 3,
    "normalize_decoder": True,
    "num_latents": N,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}
DICTIONARY: Config = {
    "trainer": {
        "dict_class": "AutoEncoderTopK",
        "trainer_class": "TopKTrainer",
        "activation_dim": D,
        "dict_size": N,
        "k": K,
        "layer": 2,
        "lm_name": "gpt2",
        "submodule_name": "resid_post_layer_2",
    },
    "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128},
}
GEMMA_2: Config = {
    "architecture": "jump_relu",
    "model_name": "gemma-3-270m",
    "hf_hook_point_in": "model.layers.2.output",
}
LLAMA_SCOPE: Config = {
    "d_model": D,
    "d_sae": N,
    "hook_point_in": "blocks.2.hook_resid_post",
    "hook_point_out": "blocks.2.hook_resid_post",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.2,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "apply_decoder_bias_to_pre_encoder": False,
    "top_k": 50,
}


def _safetensors(config_name: str, weights_name: str) -> Callable[[Path, Config, Tensors], Path]:
    def write(folder: Path, config: Config, found: Tensors) -> Path:
        (folder / weights_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / config_name).write_text(json.dumps(config))
        save_file({k: v.contiguous() for k, v in found.items()}, folder / weights_name)
        return folder

    return write


def _dictionary(folder: Path, config: Config, found: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(found, folder / "ae.pt")
    return folder


def _gemma_1(folder: Path, _config: Config, found: Tensors) -> Path:
    folder = folder / "gemma-scope-2b-pt-res" / "layer_2" / "width_16k" / "average_l0_10"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{k: v.numpy() for k, v in found.items()})
    return folder


def _openai(folder: Path, config: Config, found: Tensors) -> Path:
    path = folder / "resid_post_mlp_layer_2.pt"
    torch.save({**found, **config}, path)
    return path


def _qwen(folder: Path, _config: Config, found: Tensors) -> Path:
    folder = folder / f"SAE-Res-Qwen3-1.7B-W32K-L0_{K}"
    folder.mkdir()
    torch.save(found, folder / "layer2.sae.pt")
    return folder / "layer2.sae.pt"


def gemma_tensors(*, lower: bool) -> Tensors:
    t = tensors()
    names = ("w_enc", "w_dec") if lower else ("W_enc", "W_dec")
    rest = {name: t[name] for name in ("b_enc", "b_dec", "threshold")}
    return {names[0]: t["W_enc"].T, names[1]: t["W_dec"], **rest}


# name → how it is written, its configuration, its tensors
FORMATS: dict[str, tuple[Callable[[Path, Config, Tensors], Path], Config, Tensors]] = {
    "saelens_old": (_safetensors("cfg.json", "sae_weights.safetensors"), OLD_SAELENS, _saelens_tensors()),
    "saelens": (_safetensors("cfg.json", "sae_weights.safetensors"), NEW_SAELENS, _saelens_tensors()),
    "sparsify": (
        lambda f, c, t: _safetensors("cfg.json", "sae.safetensors")(f / "layers.2", c, t),
        SPARSIFY,
        {
            "encoder.weight": tensors()["W_enc"],
            "encoder.bias": tensors()["b_enc"],
            "W_dec": tensors()["W_dec"],
            "b_dec": tensors()["b_dec"],
        },
    ),
    "dictionary_learning": (
        _dictionary,
        DICTIONARY,
        _linear_tensors(b_dec=tensors()["b_dec"], k=torch.tensor(K), threshold=torch.tensor(-1.0)),
    ),
    "gemma_scope": (_gemma_1, {}, gemma_tensors(lower=False)),
    "gemma_scope_2": (_safetensors("config.json", "params.safetensors"), GEMMA_2, gemma_tensors(lower=True)),
    "llama_scope": (
        _safetensors("hyperparams.json", "checkpoints/final.safetensors"),
        LLAMA_SCOPE,
        _linear_tensors(**{"decoder.bias": tensors()["b_dec"]}),
    ),
    "openai": (
        _openai,
        {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}},
        {
            "encoder.weight": tensors()["W_enc"],
            "latent_bias": tensors()["b_enc"],
            "decoder.weight": tensors()["W_dec"].T,
            "pre_bias": tensors()["b_dec"],
            "stats_last_nonzero": torch.zeros(N),
        },
    ),
    "qwen_scope": (
        _qwen,
        {},
        {
            "W_enc": tensors()["W_enc"],
            "W_dec": tensors()["W_dec"].T,
            "b_enc": tensors()["b_enc"],
            "b_dec": tensors()["b_dec"],
        },
    ),
}


def write(
    name: str, folder: Path, *, config: Config | None = None, found: Tensors | None = None, **settings: Any
) -> Path:
    """Files of a format in a new folder, with some settings changed; returns what is to be read."""
    how, usual, weights = FORMATS[name]
    folder.mkdir(parents=True, exist_ok=True)
    return how(
        folder, {**(usual if config is None else config), **settings}, weights if found is None else found
    )
