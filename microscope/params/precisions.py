"""Precisions a model's weights may be loaded in."""

from __future__ import annotations

from typing import Literal

# auto is bfloat16 where the processor has it, else float32; int8 and nf4 are rounded by bitsandbytes.
Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"]
QUANTISED: frozenset[str] = frozenset({"int8", "nf4"})
