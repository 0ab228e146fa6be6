"""Released checkpoints of other code bases as checkpoints of psis_d2.

:func:`convert_checkpoint` is ``psis-d2 convert``. A source is a table of rules from its parameters'
names to psis_d2's; every parameter of the file has to be known, and every one of the model has to
be there in its shape.
"""

from psis_d2.converters.convert import SOURCES, convert_checkpoint, convert_state

__all__ = ["SOURCES", "convert_checkpoint", "convert_state"]
