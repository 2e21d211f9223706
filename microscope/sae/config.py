"""What an SAE is, beside its weights: ``sae.json``."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from microscope.sae.token_filter import TokenFilter


class SaeConfig(msgspec.Struct, kw_only=True):
    """Definition of the function and where it comes from.

    ``u = s·norm(x)``, ``pre = W_enc·(u − a·b_dec) + b_enc``, ``f = act(pre)``,
    ``x̂ = (W_decᵀ·f + b_dec [+ W_skip·s·x]) / s_out``. ``scale`` is s, ``apply_b_dec`` is a. A plain SAE
    reads and writes ``site``; a transcoder writes ``site_out``, with its own width ``d_out`` and scale
    ``scale_out``, and has no pre-bias. ``k`` is the number of winners per token, or the mean number an
    architecture with a penalty was steered to. ``groups`` are the prefix sizes of a Matryoshka SAE.
    ``input_norm`` is applied to every row: ``layer_norm`` (less its mean, over its standard deviation) or
    ``constant_norm`` (to length √d); it cannot be folded away. An SAE undoes it on its reconstruction; a
    transcoder, whose output is another activation, does not. ``assumed`` says, one sentence each, what a
    person assumed about settings of the files it was imported from.
    """

    format: Literal["microscope-sae"] = "microscope-sae"
    version: Literal[1] = 1
    architecture: str
    d_in: int
    n_latents: int
    k: int
    site: str
    scale: float = 1.0
    apply_b_dec: bool = True
    input_norm: Literal["none", "layer_norm", "constant_norm"] = "none"
    site_out: str | None = None
    d_out: int | None = None
    scale_out: float | None = None
    skip: bool = False
    groups: tuple[int, ...] = ()
    token_filter: TokenFilter = TokenFilter()
    fingerprint: str = ""
    model: dict[str, Any] = {}
    recording: str = ""
    training: dict[str, Any] = {}
    assumed: tuple[str, ...] = ()

    @property
    def width_out(self) -> int:
        """Width of what is written."""
        return self.d_out if self.d_out is not None else self.d_in

    @property
    def output_scale(self) -> float:
        """s_out."""
        return self.scale_out if self.scale_out is not None else self.scale

    @property
    def is_transcoder(self) -> bool:
        return self.site_out is not None
