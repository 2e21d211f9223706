"""What all training objectives share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from microscope.sae import SparseAutoencoder
from microscope.sae.backends import Winners, backend_for
from microscope.training.distributed import SINGLE_PROCESS, ProcessGroup
from microscope.training.objectives.sparse import LatentGradients, SparseAutoencode, energy

# sparsify's encoder starts at this fraction of the decoder, and so does ours (its users' measured best)
_ENCODER_INIT = 1 / math.sqrt(3)

S = TypeVar("S", bound=SparseAutoencoder)


@dataclass(frozen=True)
class LossContext:
    """Settings and state of a run that a loss depends on.

    ``progress`` runs from 0 to 1; ``dead`` are indices of latents that have long been silent;
    ``bfloat16`` lets the search for winners begin in that precision (float32 decides). ``group`` are the
    processes that share the batch, and ``total`` is its Σ‖t−t̄‖² where that is known already. A ``sink``
    takes the sparse gradients of the two matrices.
    """

    progress: float = 0.0
    dead: Tensor | None = None
    aux_coefficient: float = 0.0
    bfloat16: bool = False
    group: ProcessGroup = SINGLE_PROCESS
    total: Tensor | None = None
    sink: LatentGradients | None = None

    @property
    def wants_auxiliary(self) -> bool:
        """Whether there are dead latents to be revived."""
        return self.dead is not None and len(self.dead) > 0 and self.aux_coefficient != 0

    def rows(self, u: Tensor) -> int:
        """Rows of the whole batch, of which ``u`` is this process's part."""
        return len(u) * self.group.size

    def variance(self, target: Tensor) -> Tensor:
        """Σ‖t−t̄‖² of the whole batch, of which ``target`` is this process's part."""
        return variance(target, self.group) if self.total is None else self.total


@dataclass
class StepLoss:
    """This process's shares of the losses of one batch: summed over the process group they are the batch's.

    ``loss`` is to be minimised; the rest is detached and on the device: ``fvu`` is
    Σ‖t−t̂‖²/Σ‖t−t̄‖² over the batch, ``l0`` the mean number of active latents per row and ``fired``
    ``[latents]`` how often each was active.
    """

    loss: Tensor
    fvu: Tensor
    l0: Tensor
    fired: Tensor


class Objective(ABC, Generic[S]):
    """How an SAE is trained: where it starts, what is minimised, and how the optimiser treats it.

    Decoder rows have unit length throughout. State that a resumed run needs must be in the SAE's parameters
    and buffers, which a checkpoint keeps.

    Args:
        sae: what is trained.
        parameters: the architecture's own parameters, where it declares any.
    """

    # Parameters that need another learning rate than the rest, as a factor on it.
    rate_factors: ClassVar[dict[str, float]] = {}
    # What Adam's running means of gradients and of their squares keep at every step.
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    # Whether a step does all its large products in pieces (microscope.threads).
    in_pieces: ClassVar[bool] = False
    # Whether a step holds the pre-activations of all rows and latents at once, and their gradients.
    dense: ClassVar[bool] = True

    def __init__(self, sae: S, parameters: Any = None) -> None:
        self.sae, self.parameters = sae, parameters

    @abstractmethod
    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """Loss of scaled rows.

        Args:
            u: ``s·x`` ``[rows, d_in]``.
            target: what is to be reconstructed, ``s_out·y`` ``[rows, d_out]``; ``u`` itself for an SAE.
            context: how far the run is and what its settings are.
        """

    @torch.no_grad()
    def initialise(self, mean: Tensor, generator: torch.Generator) -> None:
        """Random unit decoder rows, a shrunken tied encoder, b_dec at the (scaled) mean of the target.

        A transcoder's encoder starts as random directions of its own and its decoder at zero
        (sparsify), so that it begins by predicting the mean.
        """
        sae = self.sae
        rows = torch.randn(sae.W_enc.shape, generator=generator)
        sae.W_enc.copy_(rows / rows.norm(dim=1, keepdim=True) * _ENCODER_INIT)
        if sae.config.is_transcoder:
            sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=generator))
            self.after_step()
        else:
            sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.b_dec.copy_(mean)

    def calibrate(self, u: Tensor) -> None:
        """Adapt a fresh autoencoder to the first batch of scaled rows; most need nothing."""

    @torch.no_grad()
    def before_step(self) -> None:
        """Drop the part of W_dec's gradient that would only change row lengths."""
        rows, grad = self.sae.W_dec, self.sae.W_dec.grad
        assert grad is not None
        grad.addcmul_((grad * rows).sum(1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Give every decoder row unit length."""
        rows = self.sae.W_dec
        rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))

    # --- what losses are made of ----------------------------------------------------------------------

    @property
    def pre_bias(self) -> Tensor | None:
        """b_dec where it is subtracted from the input."""
        return self.sae.b_dec if self.sae.config.apply_b_dec else None

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """W_enc, b_enc, W_dec and the pre-bias, as the sparse functions take them."""
        return self.sae.W_enc, self.sae.b_enc, self.sae.W_dec, self.pre_bias

    def offset(self, u: Tensor) -> Tensor:
        """What the output is without any latent: b_dec, and the skip path of scaled rows."""
        sae = self.sae
        return sae.b_dec if sae.W_skip is None else sae.b_dec + u @ sae.W_skip.T

    def auxiliary(self, u: Tensor, residual: Tensor, context: LossContext) -> Tensor | float:
        """The weighted AuxK term for a residual ``[rows, d_out]``, or nothing while no latent is dead.

        It is the share of the residual that the best d/2 dead latents fail to explain. The residual is
        detached; the term shrinks while fewer than d/2 latents are dead (Gao et al. 2024, arXiv 2406.04093,
        §A.2).
        """
        if not context.wants_auxiliary:
            return 0.0
        assert context.dead is not None
        dead, (w_enc, b_enc, w_dec, b_pre) = context.dead, self.weights
        wanted = residual.shape[1] // 2
        k = min(wanted, len(dead))
        with torch.no_grad():
            some_enc, some_bias = w_enc[dead], b_enc[dead]
            bias = some_bias if b_pre is None else some_bias - some_enc @ b_pre
            backend = backend_for(u)
            values, among = backend.winners_of_rows(u.contiguous(), some_enc, bias, k, bfloat16=False)
            winners = Winners.of_indices(dead[among])
        out, _ = SparseAutoencode.apply(
            u, w_enc, b_enc, w_dec, b_pre, winners, values.reshape(-1), context.sink
        )
        residual = residual.detach()
        unexplained = (out - residual).square().sum() / context.group.sum(energy(residual))
        return context.aux_coefficient * unexplained * min(1.0, len(dead) / wanted)


@torch.no_grad()
def variance(target: Tensor, group: ProcessGroup = SINGLE_PROCESS) -> Tensor:
    """Σ‖t−t̄‖² over a batch of which each process has a part ``[rows, d]``, without gradient."""
    mean = group.sum(target.sum(0)) / (len(target) * group.size)
    return group.sum(energy(target - mean))
