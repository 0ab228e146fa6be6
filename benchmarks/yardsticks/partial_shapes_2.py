"""PartialShapes 2: mask heads on one finished detector, in annotated boxes, a minute a run."""

from pathlib import Path

from .rows import SEEN, UNSEEN, Column, Yardstick

PUBLISHED = (
    ("grabcut", "baseline"),
    ("teacher_student",),
    ("maskx",),
    ("cpmask",),
    ("opmask", "shapemask", "shapeprop"),
    ("hourglass", "oracle"),
)
"""Order of the methods on COCO, masks for half of the categories, worst first, as their papers'
tables have it; written down before any of these rows was trained."""

METHODS = (
    "maskx",
    "shapeprop",
    "shapeprop_drop",
    "shapemask",
    "shapemask_fixed",
    "cpmask",
    "opmask",
    "teacher_student",
    "teacher_student_threshold",
    "teacher_student_trust",
    "contrastmask",
    "hourglass",
    "boxlosses",
    "boundary",
    "grabcut",
    "psis",
)
COLUMNS = (
    Column("IoU seen", SEEN, "IoU"),
    Column("IoU unseen", UNSEEN, "IoU"),
    Column("AP seen", SEEN, "AP"),
    Column("AP unseen", UNSEEN, "AP"),
)
COMPARISONS = (
    (
        "What the yardstick has to show: the oracle above what knows no masks, the baseline below it.",
        (
            ("oracle", "grabcut_test"),
            ("oracle", "box_fill"),
            ("oracle", "baseline"),
            ("oracle_long", "oracle"),
        ),
    ),
    ("Every method against the baseline.", tuple((m, "baseline") for m in ("dropout", *METHODS))),
    (
        "Every method against the control, channel dropout in the baseline's head.",
        tuple((m, "dropout") for m in METHODS),
    ),
)

PARTIAL_SHAPES_2 = Yardstick(
    file=Path(__file__).resolve(),
    command="make bench-masks",
    configs="configs/masks/*.yaml",
    detector="configs/masks/Base-detector.yaml",
    untrained=("grabcut_test",),
    train_set="partial_shapes_2_train",
    test_set="partial_shapes_2_test",
    split="shapes",
    overlap=0.3,
    last="oracle",
    order=("grabcut_test", "baseline", "dropout", *METHODS),
    published=PUBLISHED,
    comparisons=COMPARISONS,
    measured=("TEST.BOXES", "gt"),
    picture="docs/results_partial_shapes_2.png",
    heading="PartialShapes 2",
    words="",
    columns=COLUMNS,
    side_tables=(),
)
"""What `make bench-masks` measures."""
