"""Sparse arithmetic as loops that numba compiles for the processor at hand.

Everything here is exact up to the rounding of its own float type. What it does with tensors on other
devices, :mod:`microscope.sae.kernels` and :mod:`microscope.sae.selection` do in torch.
"""
