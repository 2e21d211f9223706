"""Jobs whose memory is watched while they run."""

from __future__ import annotations

import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from benchmarks.child import Measured, Turn
from microscope.activations import record
from microscope.features.run import analyse
from microscope.models import load_model
from microscope.params import AnalyseParams, TraceParams, TrainParams
from microscope.training import train

_EVERY_SECONDS = 0.005
_STATUS = Path("/proc/self/status")


def memory_in_use() -> float:
    """Memory of this process that no file backs, in MB; where it cannot be told, the largest resident set."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


class PeakMemory:
    """Watches the memory in use from a thread: ``before`` at the beginning, ``peak`` up to the end."""

    def __init__(self) -> None:
        self.before = self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = memory_in_use()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_SECONDS):
            self.peak = max(self.peak, memory_in_use())

    def measured(self, seconds: float, amount: float) -> Measured:
        """The round with its memory."""
        return Measured(
            seconds,
            amount,
            {"before, MB": self.before, "peak, MB": self.peak, "grown, MB": self.peak - self.before},
        )


def tracing(*, model: str, text: str, layers: list[int], tokens: int, memory_mb: int, folder: str) -> Turn:
    """Record so many tokens of several sites with a bound on waiting rows."""
    loaded = load_model(model, dtype="float32", device="cpu")

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place, PeakMemory() as memory:
            params = TraceParams(
                model=model,
                out=f"{place}/recording",
                layers=tuple(layers),
                text=(text,),
                tokens=tokens,
                held_out=0.2,
                memory_mb=memory_mb,
            )
            started = time.perf_counter()
            manifest = record(params, loaded=loaded)
            spent = time.perf_counter() - started
            assert manifest.train.rows + manifest.held_out.rows == tokens
        return memory.measured(spent, tokens)

    return turn


def training(*, recording: str, layer: int, tokens: int, buffer_mb: int, folder: str) -> Turn:
    """Train a small SAE on a whole recording once."""

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place, PeakMemory() as memory:
            params = TrainParams(
                activations=recording,
                out=f"{place}/sae",
                layer=layer,
                width=(512,),
                k=(16,),
                tokens=tokens,
                buffer_mb=buffer_mb,
                device="cpu",
            )
            started = time.perf_counter()
            train(params)
            return memory.measured(time.perf_counter() - started, tokens)

    return turn


def analysing(*, sae: str, recording: str, model: str, tokens: int, memory_mb: int, folder: str) -> Turn:
    """Analyse all features on a whole recording."""

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place, PeakMemory() as memory:
            params = AnalyseParams(
                sae_path=sae,
                activations=recording,
                model=model,
                out=place,
                memory_mb=memory_mb,
                device="cpu",
            )
            started = time.perf_counter()
            found, _ = analyse(params)
            assert found.tokens == tokens
            return memory.measured(time.perf_counter() - started, tokens)

    return turn
