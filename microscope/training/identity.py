"""What two runs must have in common for one to continue the other."""

from __future__ import annotations

import json

from microscope.params import TrainParams

# These may differ between the first run and the one that continues it; a preset is only a name for values.
_FREE = {"out", "activations", "resume", "device", "checkpoint_seconds", "preset"}


def run_identity(params: TrainParams, recording: str) -> str:
    """Settings and the recording's fingerprint as text."""
    settings = {k: v for k, v in params.settings.items() if k not in _FREE}
    return json.dumps([recording, settings], sort_keys=True)
