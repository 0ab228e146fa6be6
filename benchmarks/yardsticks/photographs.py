"""Photographs: the heads of PartialShapes 2 on images of PASCAL VOC 2012, in annotated boxes."""

import json
from dataclasses import replace
from pathlib import Path

from .partial_shapes_2 import PARTIAL_SHAPES_2

SEEN = Path(__file__).with_name("photographs_seen.txt").resolve()
_SETS = ("voc2012_work_train", "voc2012_work_test")
_IMAGES = "VOCdevkit/VOC2012/JPEGImages"

PHOTOGRAPHS = replace(
    PARTIAL_SHAPES_2,
    file=Path(__file__).resolve(),
    command="make bench-photographs",
    train_set=_SETS[0],
    test_set=_SETS[1],
    data_files=tuple((name, f"annotations/instances_{name}.json", _IMAGES) for name in _SETS),
    split=str(SEEN),
    options=(
        *("DATASETS.TRAIN", json.dumps(_SETS[:1])),
        *("DATASETS.TEST", json.dumps(_SETS[1:])),
        *("PSIS.SEEN_CLASSES", str(SEEN)),
        *("MODEL.BACKBONE.FREEZE_AT", "4"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [224]]"),
        *("INPUT.MIN_SIZE_TRAIN", "[256]"),
        *("INPUT.MAX_SIZE_TRAIN", "256"),
        *("INPUT.MIN_SIZE_TEST", "256"),
        *("INPUT.MAX_SIZE_TEST", "256"),
        *("PSIS.TRAIN_IMAGE_FRACTION", "1.0"),
        *("SOLVER.MAX_ITER", "800"),
    ),
    home="",
    picture="docs/results_photographs.png",
    heading="Photographs",
    words="""\
Photographs of PASCAL VOC 2012: 1,164 to train on, 291 to measure, 20 categories, 2,524 and 635
masks, made of VOC's class maps and boxes; masks for every other category in alphabetical order
(`benchmarks/yardsticks/photographs_seen.txt`). No photograph comes with this repository. Rows
and measures are those of PartialShapes 2; the schedule is 800 iterations on all images, the longest
side is 256 pixels, and the detector learns from stride 16 on. Figures are in
`benchmarks/yardsticks/photographs.csv`.""",
)
"""What `make bench-photographs` measures."""
