"""Which runner fits which model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from microscope.errors import MicroscopeError
from microscope.models.load import LoadedModel
from microscope.models.runner.base import BlockRunner
from microscope.models.runner.gpt2 import GPT2Runner
from microscope.models.runner.llama import LlamaRunner
from microscope.models.runner.modules import Gemma2Runner, Gemma3Runner, GPTNeoXRunner, LlamaModuleRunner

_RUNNERS: dict[str, Callable[[Any], BlockRunner]] = {
    "llama": LlamaRunner,
    "mistral": LlamaRunner,
    "qwen2": LlamaRunner,
    "qwen3": LlamaRunner,
    "gpt2": GPT2Runner,
    "gemma2": Gemma2Runner,
    "gemma3_text": Gemma3Runner,
    "gpt_neox": GPTNeoXRunner,
}


def runner_for(loaded: LoadedModel) -> BlockRunner:
    """A runner over the weights of a loaded model.

    Raises:
        MicroscopeError: ``unsupported_family`` or ``model_is_spread``.
    """
    if loaded.spread:
        raise MicroscopeError(
            "model_is_spread",
            "Running a model block by block needs it on one device, and this one is spread over several.",
            "Load it on one device, in 8 or 4 bits if it does not fit otherwise.",
        )
    build = _RUNNERS.get(loaded.config.model_type)
    if build is LlamaRunner and loaded.quantisation is not None:
        build = LlamaModuleRunner  # rounded weights cannot be fused
    if build is None:
        raise MicroscopeError(
            "unsupported_family", f"Models of type '{loaded.config.model_type}' cannot be run live."
        )
    return build(loaded.model)
