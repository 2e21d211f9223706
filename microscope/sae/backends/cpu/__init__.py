"""The sparse arithmetic as loops that numba compiles for the processor at hand."""

from microscope.sae.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
