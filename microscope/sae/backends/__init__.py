"""The sparse arithmetic, by device: plain torch on any, which is the reference, and compiled loops on a CPU."""

from torch import Tensor

from microscope.sae.backends.base import MANY, Backend, LatentSums, Pairs, Winners
from microscope.sae.backends.cpu import CpuBackend

# Every backend by the type of device it is for; the reference computes on all others.
REFERENCE = Backend()
BACKENDS: dict[str, Backend] = {"cpu": CpuBackend()}


def backend_for(tensor: Tensor) -> Backend:
    """The backend that computes where this tensor is."""
    return BACKENDS.get(tensor.device.type, REFERENCE)


__all__ = ["BACKENDS", "MANY", "REFERENCE", "Backend", "LatentSums", "Pairs", "Winners", "backend_for"]
