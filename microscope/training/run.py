"""The training of one SAE: its weights, its optimiser, its dead latents, its curve."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from microscope.activations import Recording, SiteRecord
from microscope.activations.manifest import STATISTICS
from microscope.errors import MicroscopeError
from microscope.params import RunKey, TrainParams
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture
from microscope.sae.backends import backend_for
from microscope.training.distributed import ProcessGroup
from microscope.training.objectives import LossContext, Objective, objective_class
from microscope.training.objectives.sparse import LatentGradients
from microscope.training.schedule import default_learning_rate, rate_factor
from microscope.training.update import Adam, step_in_pieces

CURVE = "curve.jsonl"

# Latents counted as dead are looked up this often: the look-up waits for the device.
_DEAD_EVERY = 8
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class TrainingRun:
    """An SAE while it is trained.

    Args:
        params: the run's parameters for this SAE alone.
        folder: where its curve, and at last its weights, are written.
        recording: what it is trained on.
        source: the site it reads.
        target: the site it reconstructs; ``source`` itself unless it is a transcoder.
        group: the processes that share the batches.
        device: where its weights are.
        bfloat16: whether the search for winners begins in that precision.
    """

    def __init__(
        self,
        params: TrainParams,
        folder: Path,
        recording: Recording,
        source: SiteRecord,
        target: SiteRecord,
        *,
        group: ProcessGroup,
        device: torch.device,
        bfloat16: bool,
    ) -> None:
        self.params, self.folder, self.recording = params, folder, recording
        self.source, self.target = source, target
        self.key: RunKey = params.runs[0]
        self.group, self.device, self.bfloat16 = group, device, bfloat16
        self.steps = max(1, params.tokens // params.batch_size)
        self.peak_rate = params.lr or default_learning_rate(self.key.width, params.batch_size)
        self.dead_after = params.dead_after or max(params.batch_size, params.tokens // 20)
        # What is reported does not depend on when AuxK begins to look after a latent.
        self._last_tenth = max(params.batch_size, params.tokens // 10)
        self.sae, self.objective = self._initial()
        objective = self.objective
        self.optimiser = Adam(self.sae.named_parameters(), objective.rate_factors, objective.betas)
        self._in_pieces = group.size == 1 and backend_for(self.sae.W_enc).piecewise_gradients
        self.silent_for = torch.zeros(self.key.width, dtype=torch.long, device=device)
        self._dead = torch.zeros(self.key.width, dtype=torch.bool, device=device)
        self._dead_list: Tensor | None = None
        self._sums = torch.zeros(2, device=device)
        self._counted = 0

    def calibrate(self, u: Tensor) -> None:
        """Adapt the fresh SAE to the whole first batch of scaled rows."""
        self.objective.calibrate(u)

    def step(self, number: int, u: Tensor, target: Tensor, total: Tensor) -> None:
        """One step on this process's part of a batch.

        Args:
            number: of the step, from 0.
            u: scaled rows ``[rows, d_in]``.
            target: what to reconstruct, scaled ``[rows, d_out]``.
            total: Σ‖t−t̄‖² of the whole batch.
        """
        params, objective, group = self.params, self.objective, self.group
        if number % _DEAD_EVERY == 0:
            self._dead = self.silent_for > self.dead_after
            self._dead_list = None
        if self._dead_list is None:
            self._dead_list = self._dead.nonzero()[:, 0]
        factor = rate_factor(number, self.steps, params.warmup, params.decay)
        self.optimiser.rate = self.peak_rate * factor
        # gradients that processes add up, or a device computes in one go, are made in full
        sink = LatentGradients() if self._in_pieces else None
        context = LossContext(
            progress=number / self.steps,
            dead=self._dead_list,
            aux_coefficient=params.aux_coefficient,
            bfloat16=self.bfloat16,
            group=group,
            total=total,
            sink=sink,
        )
        loss = objective.loss(u, target, context)
        self.optimiser.zero_grad()
        loss.loss.backward()
        self._share_gradients(in_full=sink is None)
        shares = group.sum(torch.cat((loss.fvu[None], loss.l0[None], loss.fired)))
        if sink is None:
            objective.before_step()
            self.optimiser.step()
            objective.after_step()
        else:
            step_in_pieces(self.sae, self.optimiser, sink)
        self.silent_for = torch.where(shares[2:] > 0, 0, self.silent_for + len(u) * group.size)
        self._sums = self._sums + shares[:2]
        self._counted += 1

    def _share_gradients(self, *, in_full: bool) -> None:
        """Add up the gradients of all processes; of the matrices there are none unless they are made in full.

        Raises:
            MicroscopeError: ``no_gradient`` for a parameter that the loss does not depend on.
        """
        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                parameter.grad = self.group.sum(parameter.grad)
            elif in_full or name not in ("W_enc", "W_dec"):
                raise MicroscopeError(
                    "no_gradient",
                    f"The loss of the architecture '{self.params.arch}' does not depend on {name}.",
                    "Make it a buffer of the SAE, or let the objective use it.",
                )

    # --- reports ------------------------------------------------------------------------------------

    def measured(self, step: int) -> dict[str, float]:
        """Means over the steps since the last call.

        Raises:
            MicroscopeError: ``run_diverged``.
        """
        fvu, l0 = (self._sums / max(1, self._counted)).tolist()
        self._sums, self._counted = torch.zeros_like(self._sums), 0
        if not math.isfinite(fvu):
            raise MicroscopeError(
                "run_diverged", f"The loss of {self.key} became infinite before step {step}.", "Lower --lr."
            )
        return {"fvu": fvu, "l0": l0, "dead": self.dead_share, "lr": self.optimiser.rate}

    @property
    def dead_share(self) -> float:
        """Share of latents that have not fired within the last tenth of a run's tokens."""
        return float((self.silent_for > self._last_tenth).float().mean())

    def append_curve(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point to the curve."""
        point = {"step": step, "tokens": step * self.params.batch_size, **metrics}
        with (self.folder / CURVE).open("a") as stream:
            stream.write(json.dumps(point) + "\n")

    def cut_curve(self, step: int) -> None:
        """Drop points after a step, from which the run goes on."""
        curve = self.folder / CURVE
        if curve.exists():
            lines = [line for line in curve.read_text().splitlines() if line]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            curve.write_text("".join(line + "\n" for line in kept))

    # --- checkpoints --------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that changes while training."""
        tensors = {f"sae.{k}": v for k, v in self.sae.state_dict().items()}
        for name, moments in self.optimiser.moments.items():
            tensors |= {f"adam.{name}.{k}": getattr(moments, k) for k in _MOMENTS}
        return {**tensors, "silent_for": self.silent_for, "dead": self._dead}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state again."""
        self.sae.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("sae.")})
        for name, moments in self.optimiser.moments.items():
            for k in _MOMENTS:
                setattr(moments, k, tensors[f"adam.{name}.{k}"].to(self.device))
        self.silent_for = tensors["silent_for"].to(self.device)
        self._dead = tensors["dead"].to(self.device)

    # --- beginning and end --------------------------------------------------------------------------

    def _initial(self) -> tuple[SparseAutoencoder, Objective[Any]]:
        """A fresh autoencoder whose inputs and targets are scaled to a mean square norm of d."""
        params, manifest, source, target = self.params, self.recording.manifest, self.source, self.target
        transcoder = target is not source
        config = SaeConfig(
            architecture=params.arch,
            d_in=source.width,
            n_latents=self.key.width,
            k=self.key.k,
            site=source.site,
            scale=math.sqrt(source.width) / source.rms_norm,
            apply_b_dec=not transcoder,
            site_out=target.site if transcoder else None,
            d_out=target.width if transcoder else None,
            scale_out=math.sqrt(target.width) / target.rms_norm if transcoder else None,
            skip=params.skip,
            token_filter=TokenFilter(
                exclude_special=not params.keep_outliers,
                max_norm=None if params.keep_outliers else source.outlier_norm,
            ),
            model=msgspec.to_builtins(manifest.model),
            recording=manifest.fingerprint,
        )
        sae = architecture(params.arch)(config)
        objective = objective_class(params.arch)(sae, params.of_architecture)
        generator = torch.Generator().manual_seed(self.key.seed)
        mean = load_file(self.recording.folder / STATISTICS)[f"{target.site}.mean"]
        objective.initialise(mean.float() * config.output_scale, generator)
        return sae.to(self.device), objective

    def record(self) -> dict[str, Any]:
        """What is kept in the SAE about its training."""
        params = self.params.settings
        for name in ("out", "activations", "resume"):
            params.pop(name)
        key = self.key._asdict()
        return {
            "params": params | key | {"lr": self.peak_rate, "dead_after": self.dead_after},
            "steps": self.steps,
            "tokens": self.steps * self.params.batch_size,
            "encoder_precision": "bfloat16 search, decided in float32" if self.bfloat16 else "float32",
            "dead_share": self.dead_share,
            "device": str(self.device),
            "processes": self.group.size,
        }
