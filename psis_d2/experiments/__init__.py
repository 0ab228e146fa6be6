"""Every table row and figure of the papers as an experiment that one command runs.

``papers/*.yaml`` hold what each is: config, overrides, split, published values and their source.
:mod:`.registry` reads them, :mod:`.commands` turns one into command lines, :mod:`.run` runs those,
:mod:`.page` writes them all down. ``recipes.yaml`` has the choices of the configs with their
sources, :mod:`.recipes` reads it. Nothing here imports PyTorch or Detectron2.
"""

from psis_d2.experiments.registry import (
    Experiment,
    Paper,
    Step,
    Table,
    all_experiments,
    find_experiments,
    papers,
)

__all__ = [
    "Experiment",
    "Paper",
    "Step",
    "Table",
    "all_experiments",
    "find_experiments",
    "papers",
]
