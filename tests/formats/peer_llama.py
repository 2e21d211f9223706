"""What llama.cpp computes: logits of a GGUF model with and without a LoRA file or a control vector.

Run with the peers' Python on a folder with ``request.json``::

    {"model": file, "tokens": [[id, …], …], "lora": file or null, "vector": .npy [blocks − 1, d] or null}

Writes ``base.npy``, ``patched.npy`` and ``off.npy``, ``[sequences, positions, vocabulary]`` each; ``off`` is
computed after the adapter has been taken off again.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

# The package wraps llama.cpp's server; the library in it has the whole C interface.
lib = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so")))
F32, F16 = 0, 1


class Settings(ctypes.Structure):
    """Parameters of a model or a context, longer than they are: both are returned and passed in memory."""

    _fields_ = (("words", ctypes.c_int32 * 64),)


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# Where settings of a context are, in 32-bit words, and what they are by default: checked, because they
# move between versions.
N_CTX, N_BATCH, N_UBATCH, N_SEQ, THREADS, THREADS_BATCH, FLASH, TYPE_K, TYPE_V = 0, 1, 2, 3, 7, 8, 13, 26, 27
DEFAULTS = {N_CTX: 512, N_BATCH: 2048, N_UBATCH: 512, N_SEQ: 1, FLASH: -1, TYPE_K: F16, TYPE_V: F16}

_POINTERS = (
    "llama_model_load_from_file",
    "llama_init_from_model",
    "llama_model_get_vocab",
    "llama_get_memory",
    "llama_adapter_lora_init",
)
for _name in _POINTERS:
    getattr(lib, _name).restype = ctypes.c_void_p
lib.llama_model_default_params.restype = lib.llama_context_default_params.restype = Settings
lib.llama_batch_init.restype = Batch
lib.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)


def checked(pointer: Any, what: str) -> ctypes.c_void_p:
    """A null pointer is llama.cpp's way to refuse; its log says why."""
    if not pointer:
        raise SystemExit(f"llama.cpp refused {what}")
    return ctypes.c_void_p(pointer)


def load(file: str) -> ctypes.c_void_p:
    """A model, as the library loads it unless told otherwise."""
    params = lib.llama_model_default_params()
    return checked(lib.llama_model_load_from_file(file.encode(), params), file)


def open_context(model: ctypes.c_void_p, positions: int) -> ctypes.c_void_p:
    """A context that keeps keys and values in full precision."""
    params = lib.llama_context_default_params()
    words = params.words
    found = {place: words[place] for place in DEFAULTS}
    if found != DEFAULTS:
        raise SystemExit(f"another version of llama.cpp than this script knows: {found}")
    words[N_CTX] = words[N_BATCH] = words[N_UBATCH] = max(64, positions)
    words[THREADS] = words[THREADS_BATCH] = 1
    words[TYPE_K] = words[TYPE_V] = F32
    words[FLASH] = 0
    return checked(lib.llama_init_from_model(model, params), "the context")


def logits(context: ctypes.c_void_p, model: ctypes.c_void_p, tokens: list[list[int]]) -> np.ndarray:
    """``[sequences, positions, vocabulary]``, each sequence on its own."""
    vocabulary = lib.llama_vocab_n_tokens(checked(lib.llama_model_get_vocab(model), "its vocabulary"))
    memory = checked(lib.llama_get_memory(context), "its memory")
    rows = []
    for ids in tokens:
        lib.llama_memory_clear(memory, ctypes.c_bool(True))
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if lib.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode")
        found = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), vocabulary))
        rows.append(found.astype(np.float32, copy=True))
        lib.llama_batch_free(batch)
    return np.stack(rows)


def set_lora(context: ctypes.c_void_p, adapters: list[ctypes.c_void_p]) -> None:
    """Only these adapters act, at their own strength."""
    count = len(adapters)
    pointers = (ctypes.c_void_p * max(1, count))(*(adapter.value for adapter in adapters))
    scales = (ctypes.c_float * max(1, count))(*[1.0] * count)
    if lib.llama_set_adapters_lora(context, pointers, ctypes.c_size_t(count), scales):
        raise SystemExit("llama.cpp could not apply the adapter")


def set_vector(context: ctypes.c_void_p, d: int, file: str | None) -> None:
    """Add rows to the outputs of blocks 1 and up, as its own loader hands them over; none with None."""
    rows = None if file is None else np.ascontiguousarray(np.load(file), dtype=np.float32)
    data = None if rows is None else rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    size, blocks = (0, 0) if rows is None else (rows.size, len(rows))
    if lib.llama_set_adapter_cvec(context, data, ctypes.c_size_t(size), d, 1, blocks):
        raise SystemExit("llama.cpp could not apply the control vector")


def main(folder: Path) -> None:
    """Answer one request."""
    asked = json.loads((folder / "request.json").read_text())
    lib.llama_backend_init()
    model = load(asked["model"])
    d = lib.llama_model_n_embd(model)
    context = open_context(model, max(map(len, asked["tokens"])))
    answers = {"base": logits(context, model, asked["tokens"])}
    if asked["lora"]:
        set_lora(
            context, [checked(lib.llama_adapter_lora_init(model, asked["lora"].encode()), asked["lora"])]
        )
    if asked["vector"]:
        set_vector(context, d, asked["vector"])
    answers["patched"] = logits(context, model, asked["tokens"])
    set_lora(context, [])
    set_vector(context, d, None)
    answers["off"] = logits(context, model, asked["tokens"])
    for name, found in answers.items():
        np.save(folder / f"{name}.npy", found)


main(Path(sys.argv[1]))
