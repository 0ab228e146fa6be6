"""PartialShapes 2's validation images: what its settings, and those of psis_R50, were chosen by."""

from dataclasses import replace
from pathlib import Path

from .partial_shapes_2 import PARTIAL_SHAPES_2

PARTIAL_SHAPES_2_VAL = replace(
    PARTIAL_SHAPES_2,
    file=Path(__file__).resolve(),
    command="python -m benchmarks.yardsticks --yardstick partial_shapes_2_val",
    test_set="partial_shapes_2_val",
    options=("DATASETS.TEST", '["partial_shapes_2_val"]'),
    home=PARTIAL_SHAPES_2.name,
    models=PARTIAL_SHAPES_2.name,
    published=(),
    comparisons=(PARTIAL_SHAPES_2.comparisons[0],),
    heading="PartialShapes 2, validation: how settings were chosen",
    words="""\
The models of some rows, on the validation images.""",
    picture="",
)
"""Chooses; `partial_shapes_2` reports."""
