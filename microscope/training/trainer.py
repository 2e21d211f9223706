"""The training loop: one stream of activations, one or several SAEs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microscope.activations import Recording, ShuffledRows
from microscope.errors import MicroscopeError
from microscope.hardware import has_fast_bfloat16
from microscope.models import is_out_of_memory
from microscope.models.precision import resolve_device
from microscope.params import PRESETS, RunKey, TrainParams, decode_params
from microscope.progress import SILENT, Progress
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from microscope.threads import only_pieces_divided
from microscope.training.checkpoint import Checkpoints
from microscope.training.distributed import ProcessGroup, joined_group, local_device, share_of_batch
from microscope.training.held_out import held_out_fvu
from microscope.training.identity import run_identity
from microscope.training.memory import refuse_what_does_not_fit, too_large
from microscope.training.objectives import variance
from microscope.training.run import CURVE, TrainingRun

REPORT_SECONDS = 0.5
# Checkpoints may take at most about this share of the time.
CHECKPOINT_SHARE = 0.05
_HELD_OUT_ROWS = 40_000
_NO_BETTER_THAN_THE_MEAN = 1.0


def train(params: TrainParams, progress: Progress = SILENT) -> SparseAutoencoder:
    """Train one SAE on a recording and save it in ``params.out``.

    With ``params.resume`` an interrupted run continues from its newest checkpoint and ends, on a CPU,
    in bit-identical weights; a finished one gives its SAE again.

    Raises:
        MicroscopeError: as :func:`train_all`, and ``several_saes`` when the parameters name more than one.
    """
    if len(params.runs) > 1:
        raise MicroscopeError(
            "several_saes",
            f"These parameters describe {len(params.runs)} SAEs, and one was asked for.",
            "Call train_all, or give one width, k and seed.",
        )
    return train_all(params, progress)[params.runs[0]]


def train_all(params: TrainParams, progress: Progress = SILENT) -> dict[RunKey, SparseAutoencoder]:
    """Train an SAE for every combination of width, k and seed on one stream of activations.

    A single SAE is saved in ``params.out``, several each in a folder of their own below it, such as
    ``w4096-k32-s0``. Each is bit for bit the SAE it would be if trained alone. Started by torchrun, the
    processes share every batch.

    Raises:
        MicroscopeError: ``no_recording``, ``bad_recording``, ``recording_incomplete``,
            ``site_not_recorded``, ``no_training_rows``, ``sae_exists``, ``checkpoint_mismatch``,
            ``run_diverged``, ``no_gradient``, ``out_of_memory``, ``batch_not_divisible`` or ``team_not_formed``.
    """
    recording = Recording(params.activations)
    device = resolve_device(local_device(params.device))
    with joined_group(device) as group:
        if params.batch_size % group.size:
            raise MicroscopeError(
                "batch_not_divisible",
                f"A batch of {params.batch_size} tokens cannot be shared by {group.size} processes equally.",
                f"Use --batch-size {params.batch_size // group.size * group.size or group.size}.",
            )
        training = _Training(params, recording, device, group, progress if group.rank == 0 else SILENT)
        try:
            return training.complete()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise too_large(params, training.source.width, training.target.width, device) from error


class _Training:
    def __init__(
        self,
        params: TrainParams,
        recording: Recording,
        device: torch.device,
        group: ProcessGroup,
        progress: Progress,
    ) -> None:
        self.params, self.recording, self.device, self.group = params, recording, device, group
        self.progress = progress
        self.out = Path(params.out)
        self.source = recording.site(str(params.source))
        self.target = self.source if params.target is None else recording.site(str(params.target))
        wants = params.precision
        self.bfloat16 = wants == "bfloat16" or (wants == "auto" and has_fast_bfloat16(device))
        self.steps = max(1, params.tokens // params.batch_size)
        self.identity = run_identity(params, recording.manifest.fingerprint)
        self.checkpoints = Checkpoints(self.out, self.identity)
        self.step = 0
        self.seconds = 0.0

    def complete(self) -> dict[RunKey, SparseAutoencoder]:
        params = self.params
        folders = self._folders()
        finished = self._finished(folders)
        if finished is not None:
            return finished
        refuse_what_does_not_fit(params, self.source.width, self.target.width, self.device)
        self.rows = ShuffledRows(
            self.recording,
            self.source,
            seed=params.order_seed,
            buffer_bytes=params.buffer_mb * 2**20,
            keep_outliers=params.keep_outliers,
            target=self.target if self.target is not self.source else None,
        )
        self.runs = [self._run(key, folder) for key, folder in folders.items()]
        self._start_or_resume()
        with (
            self.progress.phase(
                "training", self.steps * params.batch_size, "tokens", done=self.step * params.batch_size
            ),
            self._threads(),
        ):
            self._loop()
        self._finish()
        return {r.key: r.sae.requires_grad_(False).eval() for r in self.runs}

    def _run(self, key: RunKey, folder: Path) -> TrainingRun:
        return TrainingRun(
            self.params.alone(key),
            folder,
            self.recording,
            self.source,
            self.target,
            group=self.group,
            device=self.device,
            bfloat16=self.bfloat16,
        )

    def _folders(self) -> dict[RunKey, Path]:
        keys = self.params.runs
        return {key: self.out if len(keys) == 1 else self.out / str(key) for key in keys}

    # --- the loop -----------------------------------------------------------------------------------

    def _loop(self) -> None:
        size = self.params.batch_size
        started = last_report = last_saved = time.monotonic()
        before = self.seconds
        pause = self.params.checkpoint_seconds
        if self.step == self.steps:
            return
        for batch in self.rows.batches(size, start=self.step * size):
            self._step(batch)
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - started
            finished = self.step == self.steps
            if finished or now - last_report > REPORT_SECONDS:
                last_report = now
                self._report(final=finished)
            if finished:
                return
            if now - last_saved > pause and self.group.rank == 0:
                self._save_checkpoint()
                last_saved = time.monotonic()
                pause = max(self.params.checkpoint_seconds, (last_saved - now) / CHECKPOINT_SHARE)

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        pieces = self.device.type == "cpu" and all(run.objective.in_pieces for run in self.runs)
        return only_pieces_divided() if pieces else contextlib.nullcontext()

    def _step(self, batch: Tensor) -> None:
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        first = self.runs[0].sae.config
        u = batch[:, : first.d_in].float().mul_(first.scale)
        target = u if not first.is_transcoder else batch[:, first.d_in :].float().mul_(first.output_scale)
        if self.step == 0:
            for run in self.runs:
                run.calibrate(u)
        mine = share_of_batch(u, self.group)
        wanted = mine if target is u else share_of_batch(target, self.group)
        total = variance(target)
        for run in self.runs:
            run.step(self.step, mine, wanted, total)

    def _report(self, *, final: bool) -> None:
        shown: dict[str, float] = {}
        for run in self.runs:
            metrics = run.measured(self.step)
            if self.group.rank == 0:
                run.append_curve(self.step, metrics)
            several = len(self.runs) > 1
            shown |= {f"{run.key} {name}": metrics[name] for name in ("fvu", "dead")} if several else metrics
        self.progress.advance(self.step * self.params.batch_size, shown, final=final)

    # --- beginning and end --------------------------------------------------------------------------

    def _finished(self, folders: dict[RunKey, Path]) -> dict[RunKey, SparseAutoencoder] | None:
        """The SAEs of a run that was complete before it could say so."""
        present = [folder for folder in folders.values() if (folder / "sae.json").exists()]
        if not present:
            return None
        if self.params.resume:
            saes = {key: load_sae(folders[key]) for key in folders if folders[key] in present}
            if any(sae.config.training.get("identity") != self.identity for sae in saes.values()):
                raise MicroscopeError(
                    "checkpoint_mismatch",
                    f"{self.out} holds an SAE made with other settings or from another recording.",
                    "Train into another folder.",
                )
            return saes if len(present) == len(folders) else None
        raise MicroscopeError("sae_exists", f"{present[0]} already holds an SAE.", "Choose another --out.")

    def _start_or_resume(self) -> None:
        if self.group.rank == 0:
            for run in self.runs:
                run.folder.mkdir(parents=True, exist_ok=True)
        found = self.checkpoints.newest()
        if found is None:
            if self.group.rank == 0:
                for run in self.runs:
                    (run.folder / CURVE).unlink(missing_ok=True)
                self._announce()
            return
        if not self.params.resume:
            raise MicroscopeError(
                "sae_exists",
                f"{self.out} holds an interrupted run.",
                "Continue it with --resume or choose another --out.",
            )
        tensors, state = found
        for run in self.runs:
            prefix = f"{run.key}/"
            run.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        self.step, self.seconds = state["step"], state["seconds"]
        if self.group.rank == 0:
            for run in self.runs:
                run.cut_curve(self.step)
        self.progress.log(f"Continuing from step {self.step} of {self.steps}.")

    def _announce(self) -> None:
        preset = PRESETS.get(self.params.preset or "")
        if preset is not None:
            self.progress.log(
                f"Preset {self.params.preset}: held-out FVU {preset.fvu:.3f} in {preset.minutes:g} minutes "
                f"of training when measured ({preset.measured})."
            )

    def _finish(self) -> None:
        versions = {"torch": importlib.metadata.version("torch")}
        for run in self.runs:
            fvu = held_out_fvu(
                run.sae,
                self.recording,
                self.source,
                self.target,
                device=self.device,
                max_rows=_HELD_OUT_ROWS,
            )
            run.sae.config.training = run.record() | {
                "identity": self.identity,
                "distinct_tokens": self.rows.rows_per_epoch,
                "seconds": round(self.seconds, 1),
                "held_out_fvu": fvu,
                **self._warning(run.key, fvu),
                "context_length": self.recording.manifest.context_length,
                "prepends_bos": bool(self.recording.manifest.wrapping[0]),
                "versions": versions,
            }
            self._log_result(run.key, fvu)
            if self.group.rank == 0:
                save_sae(run.sae, run.folder)
        if self.group.rank == 0:
            self.checkpoints.remove()

    def _warning(self, key: RunKey, fvu: float | None) -> dict[str, str]:
        """A warning about an SAE that reconstructs worse than the mean does, logged and kept with it.

        Raises:
            MicroscopeError: ``run_diverged`` when what it computes is not finite.
        """
        if fvu is None or fvu <= _NO_BETTER_THAN_THE_MEAN:
            return {}
        if not math.isfinite(fvu):
            raise MicroscopeError(
                "run_diverged", f"What {key} computes on held-out text is not finite.", "Lower --lr."
            )
        told = (
            f"{key} diverged or was hardly trained: its held-out FVU of {fvu:.4g} is worse than that of "
            "the mean, which is 1. Lower --lr, or train on more tokens."
        )
        self.progress.log(told, "warning")
        return {"warning": told}

    def _log_result(self, key: RunKey, fvu: float | None) -> None:
        if fvu is None:
            return
        told = f"{key}: held-out FVU {fvu:.4f} after {self.seconds / 60:.1f} minutes"
        preset = PRESETS.get(self.params.preset or "")
        if preset is not None:
            told += f" (the preset promised {preset.fvu:.3f} in {preset.minutes:g})"
        self.progress.log(told + ".")

    def _save_checkpoint(self) -> None:
        tensors = {f"{r.key}/{name}": tensor for r in self.runs for name, tensor in r.state().items()}
        self.checkpoints.save(self.step, tensors, {"seconds": self.seconds})
        self.progress.checkpoint(self.step * self.params.batch_size)


def train_sae(
    activation_path: str,
    output_dir: str,
    layer_idx: int,
    latent_dim: int = 4096,
    *,
    progress: Progress = SILENT,
    **options: Any,
) -> SparseAutoencoder:
    """Train an SAE; the function-shaped form of :func:`train`.

    Args:
        activation_path: folder of a recording.
        output_dir: where the SAE is saved.
        layer_idx: recorded block to train on.
        latent_dim: number of latents.
        progress: told how far the run is.
        **options: any other field of :class:`~microscope.params.TrainParams`.

    Raises:
        MicroscopeError: as :func:`train`.
    """
    fields = {
        "activations": str(activation_path),
        "out": str(output_dir),
        "layer": layer_idx,
        "width": latent_dim,
    }
    return train(decode_params(TrainParams, {**fields, **options}), progress)
