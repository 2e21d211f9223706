"""Run any range of a decoder's blocks from any position: what live patching and splicing stand on."""

from microscope.models.runner.base import BlockRunner, GrowingKeyValue, KeyValue, Past, Rows, run_blocks
from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.registry import runner_for

__all__ = [
    "BlockPatch",
    "BlockRunner",
    "Delta",
    "GrowingKeyValue",
    "KeyValue",
    "Past",
    "Rows",
    "run_blocks",
    "runner_for",
]
