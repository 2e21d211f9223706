"""Load any supported causal language model, from the Hub, a folder or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from microscope.errors import MicroscopeError
from microscope.models import checkpoint, facts, memory, placement, quantised
from microscope.models.configuration import (
    first_line,
    is_offline,
    pointer_refused,
    positions_of,
    read_config,
)
from microscope.models.families import Family, declared_family
from microscope.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from microscope.models.kinds import Kind, whole_class
from microscope.models.multimodal import TextPart, check_same_logits, text_part
from microscope.models.obstacles import is_tied, obstacles_of
from microscope.models.precision import dtype_name, resolve_device, resolve_dtype
from microscope.models.structure import complete, outline, verified
from microscope.models.tokens import TokenTexts, check_tokens
from microscope.params import Site
from microscope.params.traits import TEXT_PART, WRITER_BIASES
from microscope.quarantine.content import is_pointer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)

# Whatever transformers and tokenizers make of files they do not expect.
_UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError, SafetensorError),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what the rest of the library asks of it.

    ``model`` is in evaluation mode and its weights never change (``requires_grad`` is off). ``device``
    is where token ids go; of a model spread over several, :meth:`device_of` says where a site is.
    ``dtype`` is the arithmetic and the residual stream's; ``quantisation`` says how weights were rounded.
    ``part_of`` says where in the multimodal model it is, None where it is no part of one.
    """

    reference: str
    revision: str | None
    model: Any
    tokenizer: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    quantisation: quantised.Quantisation | None = None
    part_of: TextPart | None = None

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration."""
        return self.model.config

    @property
    def n_layers(self) -> int:
        return facts.n_layers(self.model, self.family)

    @property
    def d_model(self) -> int:
        return self.family.width or facts.d_model(self.model)

    @property
    def vocab_size(self) -> int:
        return facts.vocab_size(self.model)

    @property
    def max_context(self) -> int:
        """Longest sequence, in tokens, that positions are defined for."""
        return positions_of(self.config, self.family)

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
        return memory.count_parameters(type(self.model), self.config)

    def encode(self, text: str, where: str = "The text") -> list[int]:
        """Token ids of a text with the special tokens the tokenizer wraps it in.

        Raises:
            MicroscopeError: ``no_such_token`` with the token's name: a tokenizer may know more than the model.
        """
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        check_tokens(ids, self.vocab_size, self.tokenizer, where)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt that the model can be asked about.

        Raises:
            MicroscopeError: ``empty_prompt``, ``prompt_too_long`` or ``no_such_token``.
        """
        ids = self.encode(text, "The prompt")
        if not ids:
            raise MicroscopeError("empty_prompt", "The prompt has no tokens.", "Type some text.")
        if len(ids) > self.max_context:
            raise MicroscopeError(
                "prompt_too_long",
                f"The prompt has {len(ids)} tokens; the model takes at most {self.max_context}.",
                "Shorten it.",
            )
        return ids

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
        full = self.encode("a", "What the tokenizer puts around every text")
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
            ``widths_do_not_suit``, ``nothing_to_round`` or ``quantised_files``.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    where = resolve_device(device)
    rounded = dtype if quantised.is_quantisation(dtype) else None
    computing = resolve_dtype(arithmetic if rounded else dtype, where)
    source, kind = read_config(reference, revision)
    unpacking = quantised.unpacking_options(reference, kind.whole or kind.config, rounded)
    folder = Path(source) if Path(source).is_dir() else None
    stored = None if folder is None else _read_folder(folder, kind, reference)
    skeleton, whole = _skeletons(kind, reference)
    family = declared_family(kind.config.model_type) or outline(skeleton)
    matched = None if stored is None else checkpoint.match_names(stored, skeleton, reference, whole)
    memory.check_fits(skeleton, rounded or dtype_name(computing), where, everywhere=device == "balanced")
    options: dict[str, Any] = {"dtype": computing, **unpacking}
    if rounded:
        quantised.check_widths(skeleton, rounded)
        # Read in float32, so that what is rounded does not depend on the arithmetic.
        options["dtype"] = torch.float32
        options["quantization_config"] = quantised.loading_options(rounded, computing)
    options |= placement.loading_options(device, where, needed=rounded is not None)
    hub: dict[str, Any] = {"revision": revision, "local_files_only": is_offline(source)}
    try:
        if stored is None:  # on the Hub: fetched only now that it is known to fit
            stored = checkpoint.read_headers(_hub_files(source, hub), reference)
            checkpoint.check_depth(stored, kind.config, reference)
            matched = checkpoint.match_names(stored, skeleton, reference, whole)
        # Shapes that differ are reported with the rest, where they can be named.
        options["ignore_mismatched_sizes"] = True
        weights: str | None = source
        if matched is None or matched.read_as is None:
            options |= hub | {"use_safetensors": True}
        else:
            weights, options["state_dict"] = None, stored.read(matched.read_as)
        model, info = kind.build.from_pretrained(
            weights,
            config=kind.config,
            attn_implementation="eager" if family.eager else None,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except _UNREADABLE as error:
        raise MicroscopeError(
            "bad_model_file",
            f"The files of {reference} cannot be loaded: {first_line(error)}",
            "Weights must be safetensors and complete; download or convert the model again.",
        ) from error
    tokenizer = _tokenizer(source, hub, reference)
    checkpoint.check_loaded(model, skeleton, family, info, reference)
    model.config.name_or_path = source
    model = model.eval().requires_grad_(False)
    if rounded:
        quantised.settle(model, computing)
    if "device_map" not in options:
        model = model.to(where)
    # Taken before the model first runs: bitsandbytes rearranges weights then.
    fingerprint = model_fingerprint(model) if rounded else None
    if whole is not None:
        check_same_logits(whole, skeleton, model, reference)
    if family.causal:
        family = _proven(model, family, rounded)
    where = model.get_input_embeddings().weight.device
    part_of = None if whole is None else text_part(whole, skeleton)
    loaded = LoadedModel(reference, revision, model, tokenizer, family, where, computing, rounded, part_of)
    if fingerprint is not None:
        vars(loaded)["fingerprint"] = fingerprint  # where the cached property keeps it
    return loaded


def _proven(model: Any, family: Family, rounded: quantised.Quantisation | None) -> Family:
    """A family whose sites are proven on a model's weights."""
    try:
        return complete(model, family) if family.found else verified(model, family)
    except MicroscopeError as error:
        if rounded is None:
            raise
        raise MicroscopeError(
            error.code,
            f"{error.message} Its weights were rounded as {rounded}, which code that reads them itself cannot use.",
            "Load it in bfloat16.",
        ) from error


def _tokenizer(source: str, hub: dict[str, Any], reference: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
    except _UNREADABLE as error:
        raise MicroscopeError(
            "bad_model_file",
            f"The tokenizer of {reference} cannot be loaded: {first_line(error)}",
            "tokenizer.json and tokenizer_config.json belong beside the weights, as the model's makers wrote them; "
            "code of its own is never run.",
        ) from error


def _read_folder(folder: Path, kind: Kind, reference: str) -> checkpoint.Stored:
    """Headers of a folder's weights, checked as far as that can be done before a model is built."""
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file() and is_pointer(folder / name):
            raise pointer_refused(name, reference)
    stored = checkpoint.read_headers(checkpoint.weight_files(folder, reference), reference)
    checkpoint.check_depth(stored, kind.config, reference)
    return stored


def _hub_files(source: str, hub: dict[str, Any]) -> list[Path]:
    """The weight files of a model on the Hub, fetched into its cache."""
    whole: str | None = cached_file(
        source, checkpoint.WEIGHTS, _raise_exceptions_for_missing_entries=False, **hub
    )
    if whole is not None:
        return [Path(whole)]
    found: str | None = cached_file(
        source, checkpoint.INDEX, _raise_exceptions_for_missing_entries=False, **hub
    )
    if found is None:
        raise MicroscopeError(
            "bad_model_file",
            f"The model {source} has no {checkpoint.WEIGHTS} and no {checkpoint.INDEX} on the Hub: its weights may be "
            "pickles, which can run code and are never read.",
            "Many such models have a pull request with safetensors: give its revision (refs/pr/N). Or load it once "
            "with transformers and save_pretrained it into a folder, and give that.",
        )
    index = Path(found)
    for name in checkpoint.shard_names(index, source):
        cached_file(source, name, **hub)
    return checkpoint.weight_files(index.parent, source)


def _skeletons(kind: Kind, reference: str) -> tuple[Any, Any]:
    """The model without storage and, if it is the text part of a multimodal one, that with all its parts."""
    if kind.whole is None:
        return _skeleton(kind.build, kind.config, reference), None
    whole = _skeleton(whole_class(kind.whole), kind.whole, reference)
    # Whether the embedding is also the head is said of the whole model.
    kind.config.tie_word_embeddings = is_tied(whole)
    return _skeleton(kind.build, kind.config, reference), whole


def _skeleton(build: Any, config: PretrainedConfig, reference: str) -> Any:
    try:
        return memory.skeleton(build, config)
    except Exception as error:  # sizes that do not fit each other raise many kinds
        raise MicroscopeError(
            "bad_model_file",
            f"No model can be built from the configuration of {reference}: {first_line(error)}",
            "Take the configuration that belongs to the weights.",
        ) from error


def inspect_model(reference: str, revision: str | None = None) -> dict[str, Any]:
    """Facts about a model from its configuration alone: what a form shows before anything is loaded."""
    _, kind = read_config(reference, revision)
    config = kind.config
    model, _ = _skeletons(kind, reference)
    family = declared_family(config.model_type) or outline(model)
    parameters = sum(p.numel() for p in model.parameters())
    obstacles = obstacles_of(model, family, facts.n_layers(model, family))
    if kind.whole is not None:
        obstacles = msgspec.structs.replace(obstacles, adapters=TEXT_PART)
    return {
        "family": family.name,
        "model_type": config.model_type,
        # Of a multimodal model the text part is meant; this is the model's type.
        **({} if kind.whole is None else {"text_part_of": kind.whole.model_type}),
        "n_layers": facts.n_layers(model, family),
        "d_model": facts.d_model(model),
        "vocab_size": facts.vocab_size(model),
        "max_context": positions_of(config, family),
        "parameters": parameters,
        "bytes_needed": memory.bytes_needed_by_precision(model),
        "tied": is_tied(model),
        "writer_bias": obstacles.adapted_projection == WRITER_BIASES,
        "obstacles": msgspec.to_builtins(obstacles),
    }
