"""Memory that does not grow with the text: it is bounded by a setting."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from microscope.activations import record
from microscope.features.run import analyse
from microscope.params import AnalyseParams, TraceParams
from tests.tiny_models import make_corpus

TOKENS = 100_000


def peak_mb(work: Callable[[], object]) -> float:
    """Most memory that Python and NumPy hold at once while working."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def traced(tmp_path_factory, model_folders) -> tuple[Path, float]:
    """A recording, and what making it took at most after a short one had loaded what is loaded once."""
    root = tmp_path_factory.mktemp("memory")
    corpus = make_corpus(root / "texts", documents=1600, words=80)
    params = TraceParams(
        model=str(model_folders["llama"]),
        out=str(root / "short"),
        layers=(0, 1, 2, 3),
        text=(str(corpus),),
        tokens=TOKENS // 20,
        context_length=32,
        dtype="float32",
        device="cpu",
        memory_mb=1,
    )
    record(params)
    whole = msgspec.structs.replace(params, out=str(root / "whole"), tokens=TOKENS)
    return Path(whole.out), peak_mb(lambda: record(whole))


def test_tracing_holds_as_many_rows_as_it_may(traced):
    folder, peak = traced
    assert (
        sum(file.stat().st_size for file in folder.glob("*.parquet")) > 20e6
    )  # what it would hold otherwise
    assert peak < 4


def test_analysis_holds_no_more_for_a_longer_text(traced, sae_folder):
    def peak(tokens: int) -> float:
        wanted = AnalyseParams(
            sae_path=str(sae_folder), activations=str(traced[0]), memory_mb=1, max_tokens=tokens
        )
        return peak_mb(lambda: analyse(wanted))

    peak(1000)
    # half of it fills all bounds; the codes of the other half are 5 MB
    assert peak(TOKENS) < peak(TOKENS // 2) + 2
