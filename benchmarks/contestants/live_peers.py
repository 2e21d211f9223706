"""A toggle by the plain model and by other libraries: a vector added behind one block, the next token's
logits asked for. None of them keeps anything of the passes before. Imports nothing of the project."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.child import Turn, repeated

# Last logits [vocabulary] of the prompt with a multiple of the vector added at every position.
Toggle = Callable[[float], torch.Tensor]


def _model(folder: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def _vector(d: int, dtype: str) -> torch.Tensor:
    vector = torch.randn(d, generator=torch.Generator().manual_seed(1))
    return (vector / vector.norm()).to(getattr(torch, dtype))


def _turn(toggle: Toggle, strength: float, times: int, *, changes: bool = True) -> Turn:
    strengths = itertools.count(1)

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return toggle(strength * (1 + next(strengths) / 1000))

    assert changes != torch.equal(work(), work()), "a toggle shows in the logits"
    return repeated(work, times, 1)


def plain(*, model: str, ids: list[int], dtype: str, layer: int, strength: float, times: int) -> Turn:
    """The Hugging Face model without any edit: what all ratios refer to."""
    net, tokens = _model(model, dtype), torch.tensor([ids])
    return _turn(
        lambda _: net(tokens, logits_to_keep=1, use_cache=False).logits[0, -1],
        strength,
        times,
        changes=False,
    )


def hooked(
    *,
    model: str,
    ids: list[int],
    dtype: str,
    layer: int,
    strength: float,
    times: int,
    blocks: str = "model.layers",
) -> Turn:
    """The Hugging Face model with a forward hook set for one pass."""
    net, tokens = _model(model, dtype), torch.tensor([ids])
    block, vector = net.get_submodule(f"{blocks}.{layer}"), _vector(net.config.hidden_size, dtype)

    def toggle(size: float) -> torch.Tensor:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + size * vector, *output[1:])
            return output + size * vector

        handle = block.register_forward_hook(hook)
        try:
            return net(tokens, logits_to_keep=1, use_cache=False).logits[0, -1]
        finally:
            handle.remove()

    return _turn(toggle, strength, times)


def peft(*, model: str, ids: list[int], dtype: str, layer: int, strength: float, times: int) -> Turn:
    """PEFT: a LoRA adapter of rank 1 on the block, switched off and on in turn."""
    from peft import LoraConfig, get_peft_model

    path = f"model.layers.{layer}.mlp.down_proj"
    wrapped = get_peft_model(
        _model(model, dtype), LoraConfig(r=1, lora_alpha=1, target_modules=[path])
    ).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=strength)
    tokens, off = torch.tensor([ids]), itertools.cycle((True, False))

    def toggle(_: float) -> torch.Tensor:
        if next(off):
            with wrapped.disable_adapter():
                return wrapped(input_ids=tokens, logits_to_keep=1, use_cache=False).logits[0, -1]
        return wrapped(input_ids=tokens, logits_to_keep=1, use_cache=False).logits[0, -1]

    return _turn(toggle, strength, times)


def nnsight(
    *,
    model: str,
    ids: list[int],
    dtype: str,
    layer: int,
    strength: float,
    times: int,
    blocks: str = "model.layers",
) -> Turn:
    """nnsight: a trace that adds to the block's output and saves the head's."""
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    net, tokens = _model(model, dtype), torch.tensor([ids])
    tokenizer = AutoTokenizer.from_pretrained(model)
    traced = TransformersModel(net, task="text-generation", tokenizer=tokenizer)
    block = operator.attrgetter(blocks)(traced)[layer]
    vector = _vector(net.config.hidden_size, dtype)
    several = isinstance(_output_of(net, blocks, layer, tokens), tuple)

    def toggle(size: float) -> torch.Tensor:
        if several:
            with traced.trace(tokens, logits_to_keep=1, use_cache=False):
                block.output[0][:] = block.output[0] + size * vector
                found = traced.lm_head.output.save()
            return found[0, -1]
        with traced.trace(tokens, logits_to_keep=1, use_cache=False):
            block.output[:] = block.output + size * vector
            found = traced.lm_head.output.save()
        return found[0, -1]

    return _turn(toggle, strength, times)


def _output_of(net: Any, blocks: str, layer: int, tokens: torch.Tensor) -> Any:
    """What a block returns."""
    found = []
    handle = net.get_submodule(f"{blocks}.{layer}").register_forward_hook(
        lambda _m, _i, out: found.append(out)
    )
    net(tokens, use_cache=False)
    handle.remove()
    return found[0]


def lens_bridge(*, model: str, ids: list[int], dtype: str, layer: int, strength: float, times: int) -> Turn:
    """TransformerLens's bridge with a hook for one pass."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(model, device="cpu", dtype=getattr(torch, dtype))
    return _lens(bridge, f"blocks.{layer}.hook_out", ids, dtype, strength, times)


def lens_hooked(*, model: str, ids: list[int], dtype: str, layer: int, strength: float, times: int) -> Turn:
    """TransformerLens's HookedTransformer, weights unprocessed, with a hook for one pass."""
    import transformer_lens.loading_from_pretrained as loading
    from transformer_lens import HookedTransformer
    from transformers import AutoTokenizer

    # it knows models by their names on the Hub only
    loading.get_official_model_name = lambda name: name
    hooked_model = HookedTransformer.from_pretrained_no_processing(
        model,
        hf_model=_model(model, dtype),
        tokenizer=AutoTokenizer.from_pretrained(model),
        dtype=getattr(torch, dtype),
        device="cpu",
        n_ctx=len(ids),
    )
    return _lens(hooked_model, f"blocks.{layer}.hook_resid_post", ids, dtype, strength, times)


def _lens(net: Any, site: str, ids: list[int], dtype: str, strength: float, times: int) -> Turn:
    tokens, vector = torch.tensor([ids]), _vector(net.cfg.d_model, dtype)

    def toggle(size: float) -> torch.Tensor:
        def add(x: torch.Tensor, hook: Any) -> torch.Tensor:
            return x + size * vector

        out: torch.Tensor = net.run_with_hooks(tokens, fwd_hooks=[(site, add)])
        return out[0, -1]

    return _turn(toggle, strength, times)
