"""Data sets that psis_d2 brings along. Importing this package registers them.

The generator itself is imported only when its files are missing.
"""

from psis_d2.data.datasets.builtin import register_partial_shapes
from psis_d2.data.splits import SHAPES_SEEN_NAMES as SEEN_SHAPES
from psis_d2.data.splits import SHAPES_UNSEEN_NAMES as UNSEEN_SHAPES

__all__ = ["SEEN_SHAPES", "UNSEEN_SHAPES", "register_partial_shapes"]
