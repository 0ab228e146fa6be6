"""Operators with compiled kernels, each with a PyTorch reference.

Every op has one file here, named like its files in ``csrc/``; :mod:`psis_d2.ops.reference` holds
the references. Which one runs is decided per device: see :func:`op_paths`. ``mean_field`` is plain
PyTorch alone.
"""

from psis_d2.ops._extension import (
    build_info,
    has_extension,
    has_kernel,
    load_error,
    op_paths,
    with_kernels,
    without_kernels,
)
from psis_d2.ops.affinity_attention import affinity_attention
from psis_d2.ops.mean_field import mean_field
from psis_d2.ops.message_passing import message_passing
from psis_d2.ops.shape_prior_blend import shape_prior_blend

__all__ = [
    "affinity_attention",
    "build_info",
    "has_extension",
    "has_kernel",
    "load_error",
    "mean_field",
    "message_passing",
    "op_paths",
    "shape_prior_blend",
    "with_kernels",
    "without_kernels",
]
