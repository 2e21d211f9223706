"""Activations of one block by the plain model and by other libraries. Imports nothing of the project."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.child import Measured, Turn

Forward = Callable[[torch.Tensor], torch.Tensor]
_DTYPE = torch.bfloat16


def _windows(path: str, contexts: int) -> torch.Tensor:
    return torch.from_numpy(np.load(path)[:contexts]).long()


def _model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=_DTYPE).eval()


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _passes(forward: Forward, windows: torch.Tensor, rows: int) -> Turn:
    """Rounds of forward passes over all windows, ``rows`` at a time."""
    width = forward(windows[:1]).shape

    def turn() -> Measured:
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in windows.split(rows):
                out = forward(batch)
                assert out.shape == (len(batch), *width[1:])
        return Measured(time.perf_counter() - started, windows.numel())

    return turn


def truncated(*, model: str, tokens: str, contexts: int, layer: int, rows: int) -> Turn:
    """Floor: the Hugging Face model without its upper blocks and head; nothing is stored."""
    inner = _model(model).model
    inner.config = copy.deepcopy(inner.config)
    inner.config.num_hidden_layers = layer + 1
    inner.layers = inner.layers[: layer + 1]
    inner.norm = torch.nn.Identity()
    return _passes(
        lambda ids: inner(ids, use_cache=False).last_hidden_state, _windows(tokens, contexts), rows
    )


def transformer_lens(*, model: str, tokens: str, contexts: int, layer: int, rows: int) -> Turn:
    """TransformerLens's bridge, stopped after the block; nothing is stored."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(model, device="cpu", dtype=_DTYPE)
    name = f"blocks.{layer}.hook_out"

    def forward(ids: torch.Tensor) -> torch.Tensor:
        _, cache = bridge.run_with_cache(ids, names_filter=[name], stop_at_layer=layer + 1)
        return cache[name]

    return _passes(forward, _windows(tokens, contexts), rows)


def nnsight(*, model: str, tokens: str, contexts: int, layer: int, rows: int) -> Turn:
    """nnsight's trace, stopped after the block; nothing is stored."""
    from nnsight import TransformersModel

    traced = TransformersModel(_model(model), task="text-generation", tokenizer=_tokenizer(model))
    block = traced.model.layers[layer]

    def forward(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), traced.trace(ids) as tracer:
            found = block.output.save()
            tracer.stop()
        return found

    return _passes(forward, _windows(tokens, contexts), rows)


def _dataset(tokens: str, contexts: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": np.load(tokens)[:contexts].tolist()})


def saelens_store(*, model: str, tokens: str, contexts: int, layer: int, rows: int) -> Turn:
    """SAELens's ActivationsStore, batch by batch; nothing is stored on disk."""
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore

    name = f"model.layers.{layer}"
    plain = _model(model)
    size = _windows(tokens, 1).shape[1]
    store = ActivationsStore(
        HookedProxyLM(plain, _tokenizer(model), hook_names=[name]),
        _dataset(tokens, contexts),
        streaming=False,
        hook_name=name,
        hook_head_index=None,
        context_size=size,
        d_in=plain.config.hidden_size,
        n_batches_in_buffer=8,
        total_training_tokens=10**9,
        store_batch_size_prompts=rows,
        train_batch_size_tokens=4096,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )

    def turn() -> Measured:
        started = time.perf_counter()
        for _ in range(-(-contexts // rows)):
            store.get_raw_llm_batch()
        return Measured(time.perf_counter() - started, -(-contexts // rows) * rows * size)

    return turn


def saelens_runner(*, model: str, tokens: str, contexts: int, layer: int, rows: int, folder: str) -> Turn:
    """SAELens's CacheActivationsRunner: to disk, in float32, as it writes by default."""
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    # it takes the next rows of the data set; a few more than needed keep it from running out
    data = _dataset(tokens, contexts + 4 * rows)
    width = _model(model).config.hidden_size
    size = _windows(tokens, 1).shape[1]
    number = itertools.count()

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            config = CacheActivationsRunnerConfig(
                dataset_path="local",
                model_name=model,
                model_class_name="AutoModelForCausalLM",
                model_batch_size=rows,
                hook_name=f"model.layers.{layer}",
                d_in=width,
                training_tokens=contexts * size,
                context_size=size,
                new_cached_activations_path=f"{place}/{next(number)}",
                shuffle=False,
                dtype="float32",
                device="cpu",
                buffer_size_gb=0.05,
                prepend_bos=False,
                streaming=False,
                model_from_pretrained_kwargs={"dtype": _DTYPE},
            )
            runner = CacheActivationsRunner(config, override_dataset=data)
            started = time.perf_counter()
            written = runner.run()
            return Measured(time.perf_counter() - started, len(written) * size)

    return turn
