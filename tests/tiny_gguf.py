"""A small Llama as GGUF, written by the real library."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, BLOCKS, VOCAB = 32, 2, 64
# Texts it has tokens for are of digits.
SETTINGS: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": BLOCKS,
    "llama.embedding_length": WIDTH,
    "llama.context_length": 64,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 10000.0,
    "llama.vocab_size": VOCAB,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["?", "<s>", "</s>", "t", *"0123456789", *(f"t{n}" for n in range(VOCAB - 14))],
    "tokenizer.ggml.token_type": [1] * VOCAB,
    "tokenizer.ggml.merges": ["t 1"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def weights(blocks: int = BLOCKS) -> dict[str, np.ndarray]:
    """Random weights by their names in GGUF."""
    rng = np.random.default_rng(1)
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    for block in range(blocks):
        sides = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        sides |= {"ffn_gate": (48, WIDTH), "ffn_up": (48, WIDTH), "ffn_down": (WIDTH, 48)}
        sides |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in sides.items()}
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def made_gguf(
    path: Path, changes: dict[str, object] | None = None, drop: str = "", *, blocks: int = BLOCKS
) -> Path:
    """A small model, as the real library writes it, with other settings or without some weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**SETTINGS, "llama.block_count": blocks, **(changes or {})}.items():
        if value is None or (key == "general.architecture" and value == "llama"):
            continue
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                (writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64)(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, values in weights(blocks).items():
        if not drop or drop not in name:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
