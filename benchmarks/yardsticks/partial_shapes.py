"""PartialShapes: synthetic images, masks for half of the categories, minutes a run."""

from pathlib import Path

from .rows import SEEN, UNSEEN, Claim, Column, SideTable, Yardstick

CLAIMS = (
    Claim(
        ("oracle", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        10,
        "The oracle beats the baseline on unseen categories",
    ),
    Claim(("oracle", UNSEEN), ("agnostic", UNSEEN), "AP", 13, "... in AP too"),
    Claim(
        ("agnostic", SEEN),
        ("agnostic", UNSEEN),
        "IoU",
        7,
        "The baseline loses on unseen categories",
    ),
    Claim(
        ("oracle", UNSEEN),
        ("oracle", SEEN),
        "IoU",
        -6,
        "Unseen categories are not harder than seen ones",
    ),
    Claim(("oracle", SEEN), ("oracle", UNSEEN), "IoU", -6, "... nor easier"),
    Claim(
        ("agnostic_gt", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        2,
        "Ground-truth training boxes help the baseline",
    ),
    Claim(
        ("shapeprop", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        0,
        "ShapeProp does not lose against the baseline",
    ),
    Claim(
        ("shapeprop_gt", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        4,
        "ShapeProp on ground-truth boxes beats the baseline",
    ),
    Claim(
        ("shapeprop_gt", UNSEEN),
        ("agnostic_gt_dropout", UNSEEN),
        "IoU",
        2,
        "... and channel dropout on the same boxes",
    ),
    Claim(
        ("cpmask_faster_gt", UNSEEN),
        ("agnostic_gt", UNSEEN),
        "IoU",
        2,
        "CPMask beats the baseline on the same boxes",
    ),
    Claim(
        ("cpmask_faster_gt_boundary", UNSEEN),
        ("agnostic_gt_dropout", UNSEEN),
        "IoU",
        0,
        "Its boundary module alone does not lose against channel dropout",
    ),
    Claim(
        ("shapeprop_retinamask", UNSEEN),
        ("retinamask", UNSEEN),
        "IoU",
        4,
        "ShapeProp on RetinaMask beats RetinaMask",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("retinamask_jitter", UNSEEN),
        "IoU",
        2,
        "ShapeMask beats RetinaMask's head on the same boxes",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("shapemask_no_prior", UNSEEN),
        "IoU",
        0,
        "It does not lose by its shape priors",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("shapemask_no_embedding", UNSEEN),
        "IoU",
        4,
        "It gains by its instance embedding",
    ),
    Claim(
        ("shapemask", "shrunk_gtbox_unseen"),
        ("agnostic", "shrunk_gtbox_unseen"),
        "IoU",
        2,
        "It loses less to boxes that are too small than class-agnostic Mask R-CNN",
        minus=UNSEEN,
    ),
    Claim(
        ("shapemask", "shrunk_gtbox_unseen"),
        ("agnostic_gt", "shrunk_gtbox_unseen"),
        "IoU",
        2,
        "... and than the same on ground-truth boxes",
        minus=UNSEEN,
    ),
    Claim(
        ("teacher_student_gt_threshold", UNSEEN),
        ("agnostic_gt", UNSEEN),
        "IoU",
        0,
        "A student by threshold does not lose against a teacher alone",
    ),
    Claim(
        ("teacher_student_gt_threshold", "gtbox_overlapped_unseen"),
        ("agnostic_gt", "gtbox_overlapped_unseen"),
        "IoU",
        0,
        "... nor on overlapped objects",
    ),
    Claim(
        ("boxinst_mixed", UNSEEN),
        ("boxinst", UNSEEN),
        "IoU",
        2,
        "Masks of other categories help BoxInst",
    ),
    Claim(
        ("boxinst_mixed", UNSEEN),
        ("condinst_seen", UNSEEN),
        "IoU",
        2,
        "Box losses help CondInst where there are no masks",
    ),
    Claim(
        ("condinst", UNSEEN),
        ("boxinst_mixed", UNSEEN),
        "IoU",
        2,
        "Masks of all categories help it more",
    ),
)

COLUMNS = (
    Column("IoU seen", SEEN, "IoU"),
    Column("IoU unseen", UNSEEN, "IoU"),
    Column("AP seen", SEEN, "AP"),
    Column("AP unseen", UNSEEN, "AP"),
    Column("mask AP seen", "segm_seen", "AP"),
    Column("mask AP unseen", "segm_unseen", "AP"),
    Column("box AP seen", "bbox_seen", "AP"),
    Column("box AP unseen", "bbox_unseen", "AP"),
)
SIDE_TABLES = (
    SideTable(
        "Overlapped objects",
        """\
The same measures on those objects alone whose boxes another object's mask fills to at least 30 %
(O >= 0.3; Zhao et al., Tab. 2), in the annotations' boxes.""",
        tuple(
            Column(f"{metric} {group}", f"gtbox_overlapped_{group}", metric)
            for metric in ("IoU", "AP")
            for group in ("seen", "unseen", "all")
        ),
    ),
    SideTable(
        "Boxes that are too small",
        """\
Sides multiplied by random factors from U(0.75, 1) (ShapeMask, ICCV 2019, Tab. 3), the same for all
rows: the measures in the annotations' boxes, and what they lose.""",
        (
            Column("IoU seen", "shrunk_gtbox_seen", "IoU"),
            Column("lost", SEEN, "IoU", minus="shrunk_gtbox_seen"),
            Column("IoU unseen", "shrunk_gtbox_unseen", "IoU"),
            Column("lost", UNSEEN, "IoU", minus="shrunk_gtbox_unseen"),
            Column("AP unseen", "shrunk_gtbox_unseen", "AP"),
            Column("lost", UNSEEN, "AP", minus="shrunk_gtbox_unseen"),
        ),
    ),
)

PARTIAL_SHAPES = Yardstick(
    file=Path(__file__).resolve(),
    command="make bench-shapes",
    configs="configs/quick/*_shapes.yaml",
    train_set="partial_shapes_train",
    test_set="partial_shapes_val",
    split="shapes",
    overlap=0.3,
    last="oracle",
    picture="docs/results.png",
    heading="PartialShapes",
    words="""\
Synthetic images, 20 categories, masks for ten of them (`configs/quick/`, one schedule for all
rows). *IoU* and *AP* are measured in the annotations' boxes: IoU is the mean mask IoU of the
categories, AP the share of instances above IoU .5 to .95. *mask AP* and *box AP* are COCO's, on the
model's own detections. Mean ± sample standard deviation over seeds, all in percent; seen = masks in
training, unseen = boxes only. All seeds share one data set, so the spread is that of training
alone. Minutes are those of a machine that other jobs shared. The runs' figures are in
`benchmarks/yardsticks/partial_shapes.csv`.""",
    columns=COLUMNS,
    side_tables=SIDE_TABLES,
    claims=CLAIMS,
    claim_words="""\
Differences in the annotations' boxes, seed by seed; a margin holds if every seed has it, and only
then is it claimed. Those of baseline, oracle and ShapeProp (not that over channel dropout) were set
before the runs; all others when their rows were known, so they say what was found here and predict
nothing. By chance alone, no difference at all would be positive in three seeds one time in \
eight.""",
)
"""What `make bench-shapes` measures."""
