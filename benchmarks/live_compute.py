"""Compute of a toggle and of a generated token, as ratios to the plain Hugging Face model.

All ways run in one process, round by round, in an order that rotates; what is reported is the median of
the ratios within a round, and their spread. A toggle is an edit at one layer with a strength not seen
before, answered with the next token's logits. Generation is compared per token, one column at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from microscope.live import Continuation, ResidentModel, unpatched
from microscope.models import LoadedModel, load_model
from microscope.params import Edit, EditPlan, FeatureRef, Positions
from microscope.patching.program import bind
from microscope.sae import SaeConfig, SparseAutoencoder, architecture

LAYER = 15
Way = Callable[[int], object]


def stand_in(d: int) -> SparseAutoencoder:
    """A random TopK autoencoder of usual size: its quality changes no time."""
    config = SaeConfig(architecture="topk", d_in=d, n_latents=4096, k=32, site=f"resid_post.{LAYER}")
    sae = architecture("topk")(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(4096, d, generator=generator), dim=1))
    sae.W_enc.copy_(sae.W_dec)
    return sae


def rounds(ways: dict[str, Way], count: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; each starts the round once in turn."""
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            ways[name](number)
            times[name].append(time.perf_counter() - started)
    return times


def ratios(times: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Median milliseconds, and median and spread of the ratio to one way within the rounds."""
    table = {}
    for name, mine in times.items():
        each = [a / b for a, b in zip(mine, times[to], strict=True)]
        middle = statistics.median(each)
        table[name] = {
            "ms": round(1000 * statistics.median(mine), 2),
            "ratio": round(middle, 4),
            "spread": round((max(each) - min(each)) / middle, 3),
        }
    return table


def toggles(loaded: LoadedModel, prompt: str, positions: int, count: int) -> dict[str, dict[str, float]]:
    """Compute of a toggle on a prompt of so many tokens."""
    resident, sae = ResidentModel(loaded), stand_in(loaded.d_model)
    fingerprint = sae.content_fingerprint()
    resident._saes[fingerprint] = sae
    ids = loaded.tokenizer(prompt)["input_ids"][:positions]
    text = loaded.tokenizer.decode(ids)
    resident.open("s", text)
    rows = len(resident._session("s").baseline)
    tokens = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    block = loaded.model.get_submodule(f"{loaded.family.blocks}.{LAYER}")

    def plan(strength: float, start: int, kind: Any = "add") -> EditPlan:
        where = Positions(mode="from", start=start, include_sinks=True)
        feature = FeatureRef(sae=fingerprint, index=7)
        return EditPlan(
            edits=(
                Edit(kind=kind, site=sae.config.site, feature=feature, strength=strength, positions=where),
            )
        )

    def plain(_: int) -> object:
        with torch.inference_mode():
            return loaded.model(tokens, logits_to_keep=1).logits

    def hooked(number: int) -> object:
        change = (1.0 + number) * sae.W_dec[7].to(loaded.dtype)

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + change, *output[1:])
            return output + change

        handle = block.register_forward_hook(hook)
        try:
            return plain(number)
        finally:
            handle.remove()

    def toggle(start: int, offset: float, kind: str = "add") -> Way:
        return lambda number: resident.apply("s", plan(1.0 + number + offset, start, kind))

    seen = plan(0.123, 0)
    resident.apply("s", seen)
    ways: dict[str, Way] = {
        "plain forward": plain,
        "plain forward with a hook": hooked,
        "toggle, all positions": toggle(0, 0.25),
        "toggle, from the middle": toggle(rows // 2, 0.5),
        "toggle, last 8": toggle(rows - 8, 0.75),
        "back to a seen state": lambda _: (resident.apply("s", seen), resident.apply("s", EditPlan())),
    }
    switch = peft_switch(loaded, tokens)
    if switch is not None:
        ways["PEFT adapter switched, forward"] = switch
    for way in ways.values():
        way(1000)
    return ratios(rounds(ways, count), "plain forward")


def peft_switch(loaded: LoadedModel, tokens: torch.Tensor) -> Way | None:
    """Switching a LoRA adapter of PEFT on or off and running; None without PEFT. On a model of its own."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    own = load_model(loaded.reference, dtype=str(loaded.dtype).removeprefix("torch."), device="cpu").model
    config = LoraConfig(r=1, lora_alpha=1, target_modules=[f"model.layers.{LAYER}.mlp.down_proj"])
    wrapped = get_peft_model(own, config).eval()

    def switch(number: int) -> object:
        with torch.inference_mode():
            if number % 2:
                with wrapped.disable_adapter():
                    return wrapped(input_ids=tokens, logits_to_keep=1).logits
            return wrapped(input_ids=tokens, logits_to_keep=1).logits

    return switch


def decoding(loaded: LoadedModel, prompt: str, count: int, length: int = 24) -> dict[str, dict[str, float]]:
    """Time of one token with keys and values kept: plain Hugging Face, ours unpatched, ours patched."""
    resident, sae = ResidentModel(loaded), stand_in(loaded.d_model)
    fingerprint = sae.content_fingerprint()
    resident._saes[fingerprint] = sae
    ids = loaded.tokenizer(prompt)["input_ids"][:32]
    resident.open("s", loaded.tokenizer.decode(ids))
    run = resident._session("s").baseline
    feature = FeatureRef(sae=fingerprint, index=7)
    edit = Edit(kind="scale", site=sae.config.site, feature=feature, strength=3.0)
    program = bind(
        EditPlan(edits=(edit,)),
        family=loaded.family,
        n_layers=loaded.n_layers,
        saes=resident._saes,
        adapters={},
        generating=True,
    )

    @torch.inference_mode()
    def plain(_: int) -> object:
        out = loaded.model(run.tokens[None], use_cache=True, logits_to_keep=1)
        started = time.perf_counter()
        for _ in range(length):
            token = out.logits[:, -1:].argmax(-1)
            out = loaded.model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started

    def ours(bound: Any) -> Way:
        def decode(_: int) -> object:
            column = Continuation(resident._runner, run, bound, resident._saes)
            started = time.perf_counter()
            for _ in range(length):
                column.push(int(column.logits(lambda token: False).argmax()))
            column.logits(lambda token: False)
            return time.perf_counter() - started

        return decode

    ways = {
        "plain Hugging Face": plain,
        "unpatched": ours(unpatched(loaded.n_layers)),
        "patched (scale, full encode)": ours(program),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for way in ways.values():
        way(0)
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = ways[name](number)
            assert isinstance(seconds, float)
            times[name].append(seconds / length)
    return ratios(times, "plain Hugging Face")


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder or GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="a text file to take the prompt from")
    parser.add_argument("--dtype", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompt = arguments.text.read_text()[:4000]
    report: dict[str, Any] = {}
    for dtype in arguments.dtype:
        loaded = load_model(str(arguments.model), dtype=dtype, device="cpu")
        report[dtype] = {
            "toggle": toggles(loaded, prompt, 128, arguments.rounds),
            "decode": decoding(loaded, prompt, arguments.rounds),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
