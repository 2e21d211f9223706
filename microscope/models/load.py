"""Load any supported causal language model, from the Hub, a folder or a GGUF file."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import logging as transformers_logging

from microscope.errors import MicroscopeError
from microscope.models import gguf_files, memory, placement, quantised
from microscope.models.families import Family, family_of
from microscope.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from microscope.models.precision import dtype_name, resolve_device, resolve_dtype
from microscope.models.tokens import TokenTexts
from microscope.params import Site

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what the rest of the library asks of it.

    ``model`` is in evaluation mode and its weights never change (``requires_grad`` is off). ``device``
    is where token ids go; of a model spread over several, :meth:`device_of` says where a site is.
    ``dtype`` is the arithmetic and the residual stream's; ``quantisation`` says how weights were rounded.
    """

    reference: str
    revision: str | None
    model: Any
    tokenizer: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    quantisation: quantised.Quantisation | None = None

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration."""
        return self.model.config

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def max_context(self) -> int:
        """Longest sequence, in tokens, that positions are defined for."""
        return int(self.config.max_position_embeddings)

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.model)

    @cached_property
    def tokenizer_hash(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def texts(self) -> TokenTexts:
        """What token ids read as."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def parameters(self) -> int:
        return memory.count_parameters(auto_class(self.family), self.config)

    @property
    def spread(self) -> bool:
        """Whether its blocks are on several devices."""
        return placement.is_spread(self.model)

    def device_of(self, site: Site) -> torch.device:
        """Where a site's activation is."""
        return placement.device_of(self.model, self.family.tap(site).path, self.device)

    @cached_property
    def wrapping(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens the tokenizer itself puts before and after a text: a BOS token, or [CLS] and [SEP]."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        return tuple(full[:start]), tuple(full[start + len(plain) :])


def load_model(
    reference: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    arithmetic: str = "auto",
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        reference: Hub id (``owner/name``), folder in Hugging Face layout, or ``.gguf`` file.
        revision: branch, tag or commit on the Hub.
        dtype: precision of the weights: ``auto``, ``float32``, ``bfloat16``, ``float16``, ``int8`` or
            ``nf4``.
        device: ``auto``, ``cpu``, ``cuda`` …; ``balanced`` spreads the blocks over all GPUs.
        arithmetic: what ``int8`` and ``nf4`` weights are computed with; the others compute in their own.

    Raises:
        MicroscopeError: ``unknown_model``, ``unsupported_family``, ``model_too_big``,
            ``bad_model_file``, ``wrong_file_type``, ``no_such_device``, ``bitsandbytes_missing``,
            ``widths_do_not_suit`` or ``quantised_files``.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    where = resolve_device(device)
    rounded = dtype if quantised.is_quantisation(dtype) else None
    computing = resolve_dtype(arithmetic if rounded else dtype, where)
    source, config = read_config(reference, revision)
    family = family_of(config.model_type)
    quantised.check_not_quantised_yet(reference, config)
    offline = not Path(source).is_dir() and not _hub_reachable()
    skeleton = memory.skeleton(auto_class(family), config)
    memory.check_fits(skeleton, rounded or dtype_name(computing), where, everywhere=device == "balanced")
    options: dict[str, Any] = {"dtype": computing}
    if rounded:
        quantised.check_widths(skeleton, rounded)
        # Read in float32, so that what is rounded does not depend on the arithmetic.
        options["dtype"] = torch.float32
        options["quantization_config"] = quantised.loading_options(rounded, computing)
    options |= placement.loading_options(device, where, needed=rounded is not None)
    try:
        model = auto_class(family).from_pretrained(
            source,
            attn_implementation="eager" if family.eager else None,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=offline,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=offline
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise MicroscopeError(
            "bad_model_file",
            f"The files of {reference} cannot be loaded: {_first_line(error)}",
            "Weights must be safetensors and complete; download or convert the model again.",
        ) from error
    model = model.eval().requires_grad_(False)
    if rounded:
        quantised.settle(model, computing)
    if "device_map" not in options:
        model = model.to(where)
    where = model.get_input_embeddings().weight.device
    loaded = LoadedModel(reference, revision, model, tokenizer, family, where, computing, rounded)
    if rounded:
        _ = loaded.fingerprint  # before bitsandbytes rearranges weights at their first use
    return loaded


def auto_class(family: Family) -> Any:
    """The Hugging Face class that loads a family: causal models with their head, encoders with theirs."""
    return AutoModelForCausalLM if family.causal else AutoModelForMaskedLM


def read_config(reference: str, revision: str | None = None) -> tuple[str, PretrainedConfig]:
    """Where ``from_pretrained`` finds the model, and its configuration; reads no weights.

    Raises:
        MicroscopeError: ``unknown_model``, ``bad_model_file`` or ``wrong_file_type``.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        source = str(gguf_files.converted_folder(path))
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise MicroscopeError(
                "unknown_model",
                f"The folder {reference} holds no model.",
                "It must contain config.json and safetensors weights.",
            )
        source = str(path)
    elif _HUB_ID.fullmatch(reference) and not reference.endswith(".gguf"):
        source = reference
    else:
        raise MicroscopeError(
            "unknown_model",
            f"There is no model at '{reference}'.",
            "Give a Hub id (owner/name), a folder, or a .gguf file.",
        )
    offline = not Path(source).is_dir() and not _hub_reachable()
    try:
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=offline
        )
        return source, config
    except (OSError, ValueError, KeyError) as error:
        if source == reference and not path.exists():
            raise MicroscopeError(
                "unknown_model",
                f"The model '{reference}' was not found"
                + (", and the Hub cannot be reached." if offline else f": {_first_line(error)}"),
                "Check the id and the network; private models need HF_TOKEN. A folder or .gguf file works offline.",
            ) from error
        raise MicroscopeError(
            "bad_model_file", f"The configuration of {reference} cannot be read: {_first_line(error)}"
        ) from error


def inspect_model(reference: str, revision: str | None = None) -> dict[str, Any]:
    """Facts about a model from its configuration alone: what a form shows before anything is loaded."""
    _, config = read_config(reference, revision)
    family = family_of(config.model_type)
    model = memory.skeleton(auto_class(family), config)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "family": family.name,
        "model_type": config.model_type,
        "n_layers": int(config.num_hidden_layers),
        "d_model": int(config.hidden_size),
        "vocab_size": int(config.vocab_size),
        "max_context": int(config.max_position_embeddings),
        "parameters": parameters,
        "bytes_needed": memory.bytes_needed_by_precision(model),
        "tied": is_tied(model),
        "writer_bias": has_writer_bias(model, family),
    }


def is_tied(model: Any) -> bool:
    """Whether the embedding is also the head."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def has_writer_bias(model: Any, family: Family) -> bool:
    """Whether an output projection of a block has a bias."""
    paths = (family.attention_projection, family.mlp_projection)
    modules = [model.get_submodule(f"{family.blocks}.0.{path}") for path in paths]
    return any(getattr(module, "bias", None) is not None for module in modules)


def _hub_reachable() -> bool:
    """False when there is plainly no way to the Hub, so that a cached model loads at once and a typo fails at once."""
    if os.environ.get("HF_HUB_OFFLINE") or any(
        os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")
    ):
        return not os.environ.get("HF_HUB_OFFLINE")
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
