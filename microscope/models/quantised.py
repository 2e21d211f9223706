"""Weights in 8 or 4 bits, made by bitsandbytes while a model loads.

``int8`` rounds every row of a matrix to 255 steps of its largest entry; ``nf4`` rounds blocks of 64
weights to the 16 quantiles of a normal distribution, with the blocks' scales rounded to 8 bits too.
Embeddings, norms, biases and the head stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils.quantization_config import Mxfp4Config

from microscope.errors import MicroscopeError
from microscope.params.precisions import QUANTISED

Quantisation = Literal["int8", "nf4"]

# A block of nf4 holds this many weights of one row; bitsandbytes computes this many rows at once.
_BLOCK, _ROWS = 64, 32


def is_quantisation(name: str) -> TypeGuard[Quantisation]:
    """Whether a precision means rounded weights."""
    return name in QUANTISED


class Int8Linear(nn.Linear):
    """A linear layer with int8 weights ``[out, in]`` and one float32 scale per row ``[out]``.

    Weights come from bitsandbytes, but not its product, which rounds the inputs too and chooses the
    columns it spares over all rows of a batch: the result of a position would depend on which others
    are computed with it, and a partial re-run would not equal the full one.
    """

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``x·(scale·W)ᵀ + bias``, in the arithmetic of ``x``."""
        out = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return out if self.bias is None else out + self.bias


def loading_options(quantisation: Quantisation, arithmetic: torch.dtype) -> BitsAndBytesConfig:
    """What tells ``from_pretrained`` to round weights as it reads them.

    Raises:
        MicroscopeError: ``bitsandbytes_missing``.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MicroscopeError(
            "bitsandbytes_missing",
            f"Loading weights as {quantisation} needs bitsandbytes, which is not installed.",
            "Run: pip install 'interpretability-workbench[engine]', or use bfloat16.",
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every optional speed-up
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=arithmetic,
    )


def unpacking_options(reference: str, config: Any, rounded: Quantisation | None) -> dict[str, Any]:
    """What tells ``from_pretrained`` to unpack files whose weights were rounded by their publisher.

    Numbers of 4 bits with a scale for every 32 (``mxfp4``, as gpt-oss is published) are such of bfloat16
    exactly; other roundings are refused.

    Raises:
        MicroscopeError: ``quantised_files``.
    """
    method = packing(config)
    if method is None:
        return {}
    if method != "mxfp4":
        raise MicroscopeError(
            "quantised_files",
            f"The files of {reference} are quantised already ({method}).",
            "Take the model they were made from, and load it with --load-in-8bit or --load-in-4bit.",
        )
    if rounded is not None:
        raise MicroscopeError(
            "quantised_files",
            f"The files of {reference} are quantised already ({method}), and rounding them again as {rounded} would "
            "make another model.",
            "Load it in bfloat16, which holds these numbers exactly.",
        )
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def packing(config: Any) -> str | None:
    """How the weights of a model's files were rounded by their publisher; None where they were not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method))


def check_widths(skeleton: Any, quantisation: Quantisation) -> None:
    """Whether there are matrices that would be rounded, and all of them have widths that suit.

    Raises:
        MicroscopeError: ``nothing_to_round`` or ``widths_do_not_suit``.
    """
    if not matrices(skeleton):
        raise MicroscopeError(
            "nothing_to_round",
            f"bitsandbytes rounds plain linear layers, and models of type '{skeleton.config.model_type}' have none.",
            "Load it in bfloat16.",
        )
    if quantisation == "int8":
        return
    for path, (out, width) in matrices(skeleton).items():
        if width % _BLOCK or out % _ROWS:
            raise MicroscopeError(
                "widths_do_not_suit",
                f"nf4 rounds blocks of {_BLOCK} weights and computes {_ROWS} rows at once, "
                f"but {path} is {out} × {width}.",
                "Load it in 8 bits (--load-in-8bit) or in bfloat16.",
            )


def matrices(model: Any) -> dict[str, tuple[int, int]]:
    """Paths and shapes ``(out, in)`` of the matrices that are rounded: all linear layers but the head.

    bitsandbytes passes over classes that are derived from linear layers, which may compute something else.
    """
    head = model.get_output_embeddings()
    found = {}
    for path, module in model.named_modules():
        if module is head:
            continue
        if type(module) is nn.Linear or (
            isinstance(module, nn.Linear) and not module.weight.is_floating_point()
        ):
            found[path] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            found[path] = (module.weight.shape[1], module.weight.shape[0])
    return found


def settle(model: Any, arithmetic: torch.dtype) -> None:
    """Bring a model that bitsandbytes has just loaded into the form it keeps.

    Weights were read in float32, so that what is rounded does not depend on the arithmetic; what was
    not rounded becomes ``arithmetic`` here. In float32, 4-bit layers must not be repacked at their
    first use for the bfloat16 product of some processors: that would change weights and arithmetic.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for path, module in list(model.named_modules()):
        if isinstance(module, Linear8bitLt):
            model.set_submodule(path, _int8_linear(module))
        elif isinstance(module, Linear4bit) and arithmetic == torch.float32:
            module.support_avx512bf16_for_cpu = False
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not name.endswith(".scale"):
            parameter.data = parameter.data.to(arithmetic)


def _int8_linear(module: Any) -> Int8Linear:
    with torch.device("meta"):
        layer = Int8Linear(module.in_features, module.out_features, module.bias is not None)
    layer.weight = nn.Parameter(module.weight.data, requires_grad=False)
    layer.register_buffer("scale", module.weight.SCB.float() / 127)
    layer.bias = module.bias
    return layer
