"""The autoencoder everything else talks to."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from microscope.errors import MicroscopeError
from microscope.sae.backends import backend_for
from microscope.sae.config import SaeConfig

# OpenAI's and SAELens's layer norm divide by (spread + this) and multiply by the spread
_LAYER_NORM_EPS = 1e-5
# Scaling to a constant norm adds nothing to it; a row of zeros stays one
_SMALLEST = torch.finfo(torch.float32).tiny


class Codes(NamedTuple):
    """Sparse activations of rows: values and latent indices, both ``[rows, width]``; entries that are not active hold 0."""

    values: Tensor
    indices: Tensor


class SparseAutoencoder(nn.Module):
    """An SAE or transcoder in canonical form: one row per latent in both matrices.

    ``W_enc`` is ``[latents, d_in]``, ``W_dec`` ``[latents, d_out]``, ``b_enc`` ``[latents]``, ``b_dec``
    ``[d_out]``, a skip transcoder's ``W_skip`` ``[d_out, d_in]``; all float32. Inputs and
    reconstructions are in the model's own units; the scales are applied inside.
    """

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        n, d_in, d_out = config.n_latents, config.d_in, config.width_out
        self.W_enc = nn.Parameter(torch.zeros(n, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.W_dec = nn.Parameter(torch.zeros(n, d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in)) if config.skip else None

    @classmethod
    def misfit(cls, config: SaeConfig) -> str | None:
        """What keeps a configuration from describing such an SAE, as the end of a sentence; None if nothing does."""
        return None

    @abstractmethod
    def activate(self, pre: Tensor) -> Codes:
        """Choose and rectify the winners of pre-activations ``[rows, latents]``."""

    def encode(self, x: Tensor) -> Codes:
        """Sparse activations of raw rows ``[rows, d_in]``."""
        return self.activate(self.pre_activations(x))

    @abstractmethod
    def feature(self, x: Tensor, index: int) -> Tensor:
        """Activation of one latent on raw rows, ``[rows]``: what :meth:`encode` finds, up to rounding, for less."""

    def threshold_form(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """m, c and θ of ``f = relu(m·pre + c)`` where ``pre > θ``, else 0: one number or ``[latents]`` each.

        None where no thresholds say which latents are active; exports to other programs then refuse the SAE.
        """
        return None

    def pre_activations(self, x: Tensor) -> Tensor:
        """``W_enc·(u − a·b_dec) + b_enc`` of raw rows: ``[rows, latents]`` in float32."""
        return torch.addmm(self.b_enc, self.centred(self.scaled(x)), self.W_enc.T)

    def pre_activation(self, centred: Tensor, index: int) -> Tensor:
        """The same for one latent, ``[rows]``, of scaled rows less the pre-bias."""
        # Not a matrix product: those sum in an order that depends on the number of rows.
        return (centred * self.W_enc[index]).sum(1) + self.b_enc[index]

    def scaled(self, x: Tensor) -> Tensor:
        """``u = s·norm(x)`` of raw rows, float32."""
        centre, spread = self._row_norm(x)
        u = x.float() if centre is None else x.float() - centre
        if spread is not None:
            layer_norm = self.config.input_norm == "layer_norm"
            u = u / (spread + _LAYER_NORM_EPS if layer_norm else spread.clamp_min(_SMALLEST))
        return u * self.config.scale

    def output_gain(self, x: Tensor) -> Tensor:
        """What one unit of decoded output is worth in raw units, per row: ``[rows, 1]``."""
        spread = None if self.config.is_transcoder else self._row_norm(x)[1]
        one = torch.ones(len(x), 1, device=x.device)
        return (one if spread is None else spread) / self.config.output_scale

    def _row_norm(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is subtracted from and divided out of each row, ``[rows, 1]`` each."""
        kind = self.config.input_norm
        if kind == "none":
            return None, None
        x = x.float()
        if kind == "constant_norm":
            return None, x.norm(dim=1, keepdim=True) / self.config.d_in**0.5
        centre = x.mean(1, keepdim=True)
        return centre, (x - centre).std(1, keepdim=True)

    def reading(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """A latent's pre-activation on one raw row ``[d_in]`` as ``vector·x + constant``, the row's norm held constant.

        Returns:
            The vector ``[d_in]``, and the constant: the encoder's bias less what it reads of the pre-bias.
        """
        _, spread = self._row_norm(x[None])
        vector = self.W_enc[index].detach() * self.config.scale
        if self.config.input_norm == "layer_norm":
            vector = vector - vector.mean()
        row = x.float()
        constant = self.pre_activation(self.centred(self.scaled(row[None])), index)[0].detach()
        if spread is not None:
            eps = _LAYER_NORM_EPS if self.config.input_norm == "layer_norm" else 0.0
            vector = vector / (spread[0, 0] + eps).clamp_min(_SMALLEST)
        return vector, constant - vector @ row

    def skipped(self, x: Tensor) -> Tensor | None:
        """What a skip transcoder's linear path makes of raw rows ``[rows, d_in]``: ``[rows, d_out]``; else None."""
        if self.W_skip is None:
            return None
        return (x.float() * self.config.scale) @ self.W_skip.T / self.config.output_scale

    def encoder_bias(self) -> Tensor:
        """``b_enc − a·W_enc·b_dec``: the bias of rows that are not centred first, ``[latents]``."""
        return self.b_enc - self.W_enc @ self.b_dec if self.config.apply_b_dec else self.b_enc

    def decode(self, codes: Codes, x: Tensor | None = None) -> Tensor:
        """Reconstruction in raw units, ``[rows, d_out]``.

        A skip transcoder and an SAE with a per-row norm also need the input rows ``x``. What a transcoder
        writes has a norm of its own, so its input's is not undone.
        """
        out = backend_for(self.W_dec).decode(codes.values, codes.indices, self.W_dec) + self.b_dec
        undone = self.config.input_norm != "none" and not self.config.is_transcoder
        if self.W_skip is None and not undone:
            return out / self.config.output_scale
        assert x is not None, "a skip path and a per-row norm decode with their input"
        if self.W_skip is not None:
            out = out + (x.float() * self.config.scale) @ self.W_skip.T
        if not undone:
            return out / self.config.output_scale
        out = out * self.output_gain(x)
        centre, _ = self._row_norm(x)
        return out if centre is None else out + centre

    def forward(self, x: Tensor) -> Tensor:
        """``x̂`` of raw rows ``[rows, d_in]``, float32 ``[rows, d_out]``."""
        self.check_width(x)
        return self.decode(self.encode(x), x)

    def check_width(self, x: Tensor) -> None:
        """Raises :class:`MicroscopeError` ``wrong_width`` when the rows do not fit this SAE."""
        if x.shape[-1] != self.config.d_in:
            raise MicroscopeError(
                "wrong_width",
                f"The activations are {x.shape[-1]} wide, this SAE reads {self.config.d_in}.",
                "It belongs to another model or site.",
            )

    def decoder_direction(self, index: int) -> Tensor:
        """What one unit of a feature adds, in raw units: ``W_dec[i]/s_out``, ``[d_out]``.

        With a per-row norm that holds for rows of unit spread; see :meth:`output_gain`.
        """
        return self.W_dec[index].detach() / self.config.output_scale

    def check_feature(self, index: int) -> None:
        """Raises :class:`MicroscopeError` ``no_such_feature``."""
        if not 0 <= index < self.config.n_latents:
            raise MicroscopeError(
                "no_such_feature",
                f"Feature {index} does not exist: the SAE has {self.config.n_latents} latents.",
            )

    @torch.no_grad()
    def content_fingerprint(self) -> str:
        """32 hex digits over the function this SAE computes: weights, architecture, k, sites, scales."""
        c = self.config
        identity = [c.architecture, c.d_in, c.n_latents, c.k, c.site, c.scale, c.apply_b_dec]
        identity += [c.site_out, c.d_out, c.scale_out, c.skip, list(c.groups), c.input_norm]
        digest = hashlib.sha256(json.dumps(identity).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def centred(self, u: Tensor) -> Tensor:
        """Scaled rows less the pre-bias."""
        return u - self.b_dec if self.config.apply_b_dec else u


class IndependentLatents(SparseAutoencoder):
    """Base of architectures in which every latent decides for itself whether it is active."""

    @abstractmethod
    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        """Activations of some latents from their pre-activations, ``[rows, some]`` both."""

    def activate(self, pre: Tensor) -> Codes:
        return sparsify(self.rectify(pre, slice(None)))

    def feature(self, x: Tensor, index: int) -> Tensor:
        pre = self.pre_activation(self.centred(self.scaled(x)), index)
        return self.rectify(pre[:, None], slice(index, index + 1))[:, 0]


def sparsify(f: Tensor) -> Codes:
    """Dense non-negative activations ``[rows, latents]`` as codes as wide as the busiest row."""
    width = max(1, int((f > 0).sum(1).max())) if len(f) else 1
    values, indices = f.topk(width, dim=1, sorted=False)
    return Codes(values, indices)
