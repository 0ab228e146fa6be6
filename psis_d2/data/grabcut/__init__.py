"""GrabCut: masks for boxes, one at a time or for a whole data set, and their cache on disk."""

from psis_d2.data.grabcut.cache import cache_folder, cached_grabcut_masks, grabcut_masks
from psis_d2.data.grabcut.cut import FALLBACKS, OUTSIDE, GrabCut, encode_mask

__all__ = [
    "FALLBACKS",
    "OUTSIDE",
    "GrabCut",
    "cache_folder",
    "cached_grabcut_masks",
    "encode_mask",
    "grabcut_masks",
]
