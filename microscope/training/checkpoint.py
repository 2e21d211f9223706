"""Everything a run needs to continue bit for bit, in one file that is either whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError

_KEEP = 2


class Checkpoints:
    """The checkpoint files of one run, ``checkpoints/step-*.safetensors`` in its output folder.

    ``identity`` is :func:`run_identity` of the run they belong to.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / "checkpoints"
        self._identity = identity

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint and drop all but the newest two."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:09d}.safetensors"
        temporary = path.with_suffix(".tmp")
        metadata = {"identity": self._identity, "state": json.dumps({"step": step, **state})}
        try:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=metadata
            )
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # on a full disk the room is needed
            raise
        for old in self._files()[:-_KEEP]:
            old.unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest readable checkpoint, or None.

        Raises:
            MicroscopeError: ``checkpoint_mismatch`` when it belongs to other settings or data.
        """
        for path in reversed(self._files()):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            except (SafetensorError, OSError):
                continue  # a damaged file is worth less than the one before it
            if metadata.get("identity") != self._identity:
                raise MicroscopeError(
                    "checkpoint_mismatch",
                    f"The checkpoints in {self._folder} were made with other settings or another recording.",
                    "Train into another folder, or repeat the settings of the interrupted run.",
                )
            return tensors, json.loads(metadata["state"])
        return None

    def remove(self) -> None:
        """Delete all checkpoints; the finished SAE replaces them."""
        for path in self._folder.glob("step-*"):
            path.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.safetensors"))
