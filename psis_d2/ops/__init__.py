"""Operators with compiled kernels, each with a PyTorch twin.

Every op has one file here, named like its files in ``csrc/``; :mod:`psis_d2.ops.reference` holds
the twins. Which one runs is decided per device: see :func:`op_paths`.
"""

from psis_d2.ops._extension import build_info, has_extension, load_error, op_paths
from psis_d2.ops.affinity_attention import affinity_attention
from psis_d2.ops.message_passing import message_passing
from psis_d2.ops.shape_prior_blend import shape_prior_blend

__all__ = [
    "affinity_attention",
    "build_info",
    "has_extension",
    "load_error",
    "message_passing",
    "op_paths",
    "shape_prior_blend",
]
