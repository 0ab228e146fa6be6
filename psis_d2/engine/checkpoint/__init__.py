"""Checkpoints: written whole, read without running code, compared with the run they go into.

`reading` turns any file into tensors or one sentence, `unpickling` reads pickles of arrays,
`entry` is what a file says of itself, `checkpointer` saves and loads.
"""

from psis_d2.engine.checkpoint.checkpointer import Checkpointer, remove_leftovers
from psis_d2.engine.checkpoint.entry import read_entry
from psis_d2.engine.checkpoint.reading import DamagedCheckpoint
from psis_d2.engine.checkpoint.weights import read_checkpoint

__all__ = [
    "Checkpointer",
    "DamagedCheckpoint",
    "read_checkpoint",
    "read_entry",
    "remove_leftovers",
]
