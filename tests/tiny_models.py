"""Tiny random models of every supported architecture, made on the spot from their configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

WORDS = [
    "the",
    "state",
    "of",
    "union",
    "is",
    "strong",
    "and",
    "people",
    "ask",
    "congress",
    "to",
    "pass",
    "a",
    "budget",
    "for",
    "roads",
    "schools",
    "peace",
    "trade",
    "war",
    "gold",
    "silver",
    "land",
    "law",
    "court",
    "army",
    "navy",
    "treaty",
    "nation",
    "year",
    "citizens",
    "senate",
    "house",
    "report",
    "public",
    "money",
]
VOCABULARY = 256

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def config_of(kind: str, *, width: int = 32) -> PretrainedConfig:
    """A tiny configuration by architecture name; some take another width than 32."""
    if width != 32:
        wide = _LLAMA | {"hidden_size": width, "intermediate_size": 2 * width}
        sizes = {"vocab_size": VOCABULARY, "n_embd": width, "n_layer": 4, "n_head": 4, "n_positions": 128}
        return {
            "llama": LlamaConfig(**wide),
            "qwen3": Qwen3Config(**wide, head_dim=32),
            "gpt2": GPT2Config(**sizes),
            "gemma2": Gemma2Config(**wide, head_dim=32, sliding_window=8, query_pre_attn_scalar=12),
            "gpt_neox": GPTNeoXConfig(
                **_encoder_sizes() | {"hidden_size": width, "intermediate_size": 2 * width}, rotary_pct=0.5
            ),
        }[kind]
    match kind:
        case "llama":
            return LlamaConfig(**_LLAMA)
        case "llama-bias":
            return LlamaConfig(**_LLAMA, attention_bias=True, mlp_bias=True)
        case "mistral":
            return MistralConfig(**_LLAMA, sliding_window=None)
        case "qwen2":
            return Qwen2Config(**_LLAMA)
        case "qwen3":
            return Qwen3Config(**_LLAMA, head_dim=16)
        case "gpt2":
            return GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=128)
        case "gemma2":
            return Gemma2Config(**_LLAMA, head_dim=16, sliding_window=8, query_pre_attn_scalar=12)
        case "gemma3":
            return Gemma3TextConfig(**_LLAMA, head_dim=16, sliding_window=8, sliding_window_pattern=2)
        case "gpt_neox":
            return GPTNeoXConfig(**_encoder_sizes(), rotary_pct=0.5)
        case "bert":
            return BertConfig(**_encoder_sizes())
        case "roberta":
            return RobertaConfig(**_encoder_sizes() | {"max_position_embeddings": 131})
    raise ValueError(kind)


def _encoder_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }


KINDS = ("gpt2", "llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox")
ENCODERS = ("bert", "roberta")


def make_model(kind: str, folder: Path, *, seed: int = 0, width: int = 32, **settings: Any) -> Path:
    """Write a tiny model and tokenizer into a folder, as a user would have them; ``settings`` configure it."""
    torch.manual_seed(seed)
    config = config_of(kind, width=width)
    config.update(settings)
    model = (AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Random weights of a usable size, gains and biases off their trivial defaults.
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
            else:
                weight.add_(torch.randn_like(weight) * 0.1) if "bias" not in name else weight.normal_(0, 0.1)
    model.save_pretrained(folder)
    make_tokenizer(wraps=kind in ENCODERS).save_pretrained(folder)
    return folder


def make_tokenizer(*, wraps: bool = False) -> PreTrainedTokenizerFast:
    """Whole words with their leading space where known; ``wraps`` puts <s> and </s> around a text."""
    pieces = ["<unk>", "<s>", "</s>"]
    pieces += ["▁" + w for w in WORDS] + ["▁"]
    pieces += [chr(c) for c in range(32, 127)] + ["\n"]
    pieces += [f"<extra{i}>" for i in range(VOCABULARY - len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if wraps:
        ends = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )


def make_corpus(folder: Path, *, documents: int = 40, words: int = 120, seed: int = 0) -> Path:
    """A folder of text files over the tokenizer's words."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(documents):
        picks = torch.randint(len(WORDS), (words,), generator=generator).tolist()
        (folder / f"{number:03d}.txt").write_text(" ".join(WORDS[i] for i in picks))
    return folder
