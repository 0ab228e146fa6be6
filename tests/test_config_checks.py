"""Every config key: what it may be is declared, and a wrong value is refused before a run."""

import math
import re

from psis_d2 import config_checks as checks
from psis_d2.config import RENAMED_KEYS, add_psis_config, psis_keys
from psis_d2.config_checks import check_value, value_of
from psis_d2.config_rules import check_config, checked_keys
from psis_d2.errors import UserError, check_choice

import pytest
from detectron2.config import CfgNode, get_cfg
from one_sentence import refusal

KEYS = sorted(checked_keys())
CHOICES = [key for key in KEYS if isinstance(checked_keys()[key].check, checks.Choice)]
NUMBERS = [key for key in KEYS if isinstance(checked_keys()[key].check, checks.Number)]
SHARES = """PSIS.MASK_IMAGE_FRACTION PSIS.TRAIN_IMAGE_FRACTION PSIS.ROI_CHANNEL_DROPOUT
    PSIS.ROI_FEATURE_DROP PSIS.FCOS.PRIOR_PROB PSIS.FCOS.FOCAL_LOSS_ALPHA PSIS.FCOS.NMS_THRESH
    PSIS.FCOS.SCORE_THRESH_TRAIN PSIS.FCOS.SCORE_THRESH_TEST PSIS.RETINANET.SELF_ADJUST_MOMENTUM
    PSIS.MISSING_MASK_MIN_SCORE
    PSIS.RETINANET.SCORE_THRESH_TRAIN PSIS.SHAPEMASK.INITIAL_PROB PSIS.TEACHER_STUDENT.THRESHOLD
    PSIS.CONDINST.COLOR_THRESHOLD PSIS.CONDINST.COLLAPSE_FILL TEST.BOX_SHRINK TEST.OVERLAP
    PSIS.SHAPEMASK.SAMPLE_OFFSET PSIS.BOX_TRAIN_SHRINK PSIS.COLOR_THRESHOLD
    PSIS.CONTRASTMASK.KEY_SHARE PSIS.CONTRASTMASK.MAP_THRESHOLD PSIS.CONTRASTMASK.MASK_MIN_IOU
    PSIS.CONTRASTMASK.START PSIS.TEACHER_STUDENT.MOMENTUM"""
AT_LEAST_ONE = """PSIS.FCN_UPSAMPLINGS PSIS.GRABCUT.ITERATIONS PSIS.CPMASK.BOUNDARY_WIDTH
    PSIS.MASKX.LAYERS PSIS.FCOS.TOWER_CONVS PSIS.FCOS.TOWER_DIM PSIS.FCOS.PRE_NMS_TOPK_TRAIN
    PSIS.FCOS.PRE_NMS_TOPK_TEST PSIS.FCOS.POST_NMS_TOPK_TRAIN PSIS.SHAPEPROP.TOWER_CONVS
    PSIS.RETINANET.DETECTIONS_PER_IMAGE_TRAIN PSIS.SHAPEPROP.TOWER_DIM PSIS.SHAPEPROP.LATENT_DIM
    PSIS.SHAPEPROP.EMBED_CONVS PSIS.SHAPEPROP.EMBED_DIM PSIS.SHAPEMASK.UPSAMPLING
    PSIS.NASFPN.REPEATS PSIS.CONDINST.CRF_SIDE PSIS.CONDINST.BRANCH_DIM PSIS.CONDINST.CHANNELS
    PSIS.CONDINST.HEAD_LAYERS PSIS.SHAPEPROP.DILATION
    PSIS.CONDINST.HEAD_DIM PSIS.CONDINST.UPSAMPLING PSIS.CONDINST.PAIRWISE_DILATION
    SOLVER.MAX_ITER SOLVER.IMS_PER_BATCH SOLVER.ACCUMULATE SOLVER.CHECKPOINT_PERIOD
    MODEL.ROI_HEADS.NUM_CLASSES
    PSIS.CONTRASTMASK.ENCODER_DIM PSIS.CONTRASTMASK.MIN_KEYS PSIS.CONTRASTMASK.PROJECTOR_LAYERS
    PSIS.PAIRWISE_DILATION
    TEST.DETECTIONS_PER_IMAGE TEST.PRECISE_BN.NUM_ITER"""


def config(**values) -> CfgNode:
    """The default config with values by full names, dots written as two underscores."""
    cfg = get_cfg()
    add_psis_config(cfg)
    for key, value in values.items():
        put(cfg, key.replace("__", "."), value)
    return cfg


def put(cfg: CfgNode, key: str, value) -> None:
    path, _, name = key.rpartition(".")
    (value_of(cfg, path) if path else cfg)[name] = value


def leaves(node: CfgNode, prefix: str):
    for name, value in node.items():
        key = f"{prefix}.{name}"
        yield from leaves(value, key) if isinstance(value, CfgNode) else [key]


def probes(check: checks.Check) -> tuple[list, list]:
    """Values at the borders of what is declared: those inside, and those just outside."""
    match check:
        case checks.Flag():
            return [True, False], [1, "True", "yes"]
        case checks.Choice(choices):
            return list(choices), [f"{choice}x" for choice in choices] + ["", 1][("" in choices) :]
        case checks.Text(empty):
            return ["x", *[""] * empty], [3, *[" "] * (not empty)]
        case checks.Fixed(value):
            return [value], [not value if isinstance(value, bool) else [value]]
        case checks.List(item, least, most):
            good, bad = probes(item)
            shortest = [good[0]] * least
            outside = [[*shortest[1:], value] if least else [value] for value in bad]
            if least:
                outside.append(shortest[1:])
            if most < math.inf:
                outside.append([good[0]] * (int(most) + 1))
            return [shortest, tuple([good[-1]] * max(least, 1))], [*outside, "x", 3]
        case checks.Rows(items):
            row = [probes(item)[0][0] for item in items]
            wrong = [
                [*row[:at], probes(item)[1][0], *row[at + 1 :]] for at, item in enumerate(items)
            ]
            return [[], [row], [row, row]], [[row[1:]], [[*row, 1]], row, *([x] for x in wrong)]
        case checks.Options():
            return [[], ["A", 1], ("A.B", "x", "C", None)], [["A"], [1, 2], "A 1"]
    step = 1 if check.whole else 1e-6
    low = check.low if check.low > -math.inf else -1000 * step
    high = check.high if check.high < math.inf else low + 1000
    good = [low + step * check.above, high - step * check.below]
    bad = [math.nan, math.inf, -math.inf, True, "1"] + [0.5] * check.whole
    bad += [low - step * (not check.above)] if check.low > -math.inf else []
    bad += [high + step * (not check.below)] if check.high < math.inf else []
    return good, bad


def test_every_key_says_what_it_may_be():
    cfg = config()
    there = {*leaves(cfg.PSIS, "PSIS"), *leaves(cfg.TEST, "TEST"), "SOLVER.OPTIMIZER"}
    known = checked_keys()
    missing = sorted(key for key in there if key not in known or known[key].check is None)
    assert missing == [], "declare in psis_d2/config*.py: node.NAME = default, check"


def test_a_key_without_check_is_an_omission():
    table = {}
    node = checks.Keys(table, "PSIS.NEW")
    node.ONE = 1
    node.TWO = 2, checks.whole(0), checks.needs(("A", "b"))
    assert table["PSIS.NEW.ONE"] == checks.Key(1, None)
    assert table["PSIS.NEW.TWO"] == checks.Key(2, checks.whole(0), needs=(("A", "b"),))


def test_defaults_are_accepted():
    check_config(config())


@pytest.mark.parametrize("key", KEYS)
def test_values_at_the_borders(key):
    check = checked_keys()[key].check
    good, bad = probes(check)
    for value in good:
        check_value(checked_keys(), key, value)
    cfg = config()
    for value in [*bad, None, {}]:
        put(cfg, key, value)
        assert refusal(check_config, cfg).startswith(f"{key} is ")


def test_numbers_are_what_they_count():
    """The table itself: nothing counts to less than nothing, shares end at 1."""
    known = checked_keys()
    seeds = [key for key in NUMBERS if key.endswith("SEED") and "SHAPEMASK" not in key]
    negative = [key for key in NUMBERS if known[key].check.accepts(-1)]
    assert negative == sorted([*seeds, "PSIS.CPMASK.AFFINITY_GAMMA"])
    at_most_one = [k for k in NUMBERS if known[k].check.accepts(0.5)]
    assert sorted(k for k in at_most_one if not known[k].check.accepts(1.5)) == sorted(
        SHARES.split()
    )
    counts = [k for k in NUMBERS if known[k].check.whole and not known[k].check.accepts(0)]
    assert sorted(counts) == sorted(AT_LEAST_ONE.split())


@pytest.mark.parametrize("key", CHOICES)
def test_a_misspelled_choice_has_a_hint(key):
    for choice in checked_keys()[key].check.choices:
        if len(choice) > 2:
            words = refusal(check_config, config(**{key.replace(".", "__"): f"{choice[:-1]}"}))
            assert re.search(r"\(did you mean \w+\?\)\.$", words)
            assert choice in words


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("TEST.BOXES", "gtt", "choose one of detected, gt, both (did you mean gt?)."),
        ("TEST.MASKS", "grabcat", "grabcut, or a file that ends in .json (did you mean grabcut?)."),
        ("TEST.OVERLAP", 3.0, "is 3.0; it must be a finite number, at least 0.0 and at most 1.0."),
        ("TEST.BOX_SHRINK", -1.0, "is -1.0; it must be a finite number, above 0.0 and at most 1.0"),
        ("SOLVER.OPTIMIZER", "adamw", "choose one of SGD, AdamW (did you mean AdamW?)."),
        ("PSIS.HOURGLASS.BLOCKS", [1, 0], "a list of at least 2 entries, each of them a whole num"),
        ("TEST.AUG.ENABLED", True, "psis_d2 tests every image once"),
        ("MODEL.KEYPOINT_ON", True, "psis_d2 has no keypoints; leave it False."),
        ("MODEL.LOAD_PROPOSALS", True, "reads no files of proposals; leave it False."),
        ("OUTPUT_DIR", "", "it must be a text that is not empty."),
    ],
)
def test_sentences(key, value, words):
    cfg = config()
    put(cfg, key, value)
    assert words in refusal(check_config, cfg)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"PSIS__BOX_JITTER_STD": 0.2},
            "only with PSIS.MASK_TRAIN_BOXES jittered_gt; set that, or",
        ),
        ({"PSIS__MASK_BOXES_PER_IMAGE": 8}, "leave MASK_BOXES_PER_IMAGE 0."),
        ({"PSIS__MLP_BRANCH_DIM": 8}, "only with PSIS.MLP_BRANCH True"),
        ({"PSIS__GRABCUT__MAX_SIDE": 8}, "with PSIS.MISSING_MASKS grabcut or TEST.MASKS grabcut"),
        (
            {"PSIS__MISSING_MASK_WEIGHT": 0.5},
            "with PSIS.MISSING_MASKS grabcut or PSIS.MISSING_MASKS a file that ends in .json; set",
        ),
        (
            {"PSIS__MISSING_MASK_MIN_SCORE": 0.5, "PSIS__MISSING_MASKS": "grabcut"},
            "only with PSIS.MISSING_MASKS a file that ends in .json; set that",
        ),
        ({"PSIS__TEACHER_STUDENT__CRF_STEPS": 3}, "with PSIS.TEACHER_STUDENT.POSTPROCESS crf"),
        ({"PSIS__RETINANET__SELF_ADJUST_MOMENTUM": 0.2}, "BBOX_REG_LOSS_TYPE self_adjusting"),
    ],
)
def test_values_that_nothing_switches_on(values, words):
    assert words in refusal(check_config, config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"PSIS__BOX_JITTER_STD": 0.2, "PSIS__MASK_TRAIN_BOXES": "jittered_gt"},
        {"PSIS__MASK_BOXES_PER_IMAGE": 8, "PSIS__MASK_TRAIN_BOXES": "gt"},
        {"PSIS__GRABCUT__MAX_SIDE": 8, "PSIS__MISSING_MASKS": "grabcut"},
        {"PSIS__GRABCUT__MAX_SIDE": 8, "TEST__MASKS": "grabcut"},
        {"PSIS__MISSING_MASK_WEIGHT": 0.5, "PSIS__MISSING_MASKS": "grabcut"},
        {"PSIS__MISSING_MASK_SCORE_POWER": 2.0, "PSIS__MISSING_MASKS": "a/Sam.JSON"},
        {"TEST__MASKS": "sam.json"},
    ],
)
def test_values_that_something_switches_on(values):
    check_config(config(**values))


def test_renamed_keys_lead_to_keys():
    assert RENAMED_KEYS
    for old, new in RENAMED_KEYS.items():
        assert old not in psis_keys()
        assert new in psis_keys()


def test_choices_are_those_of_the_code():
    """The table and the functions that read the keys agree on what there is."""
    from psis_d2.data.training_set import MISSING_MASKS
    from psis_d2.engine.stages import PARTS
    from psis_d2.evaluation.run import TEST_BOXES, TEST_MASKS
    from psis_d2.modeling.condinst.mask_head import LOSSES
    from psis_d2.modeling.detectors.fcos import BOX_LOSSES
    from psis_d2.modeling.pseudo_masks import POSTPROCESSINGS
    from psis_d2.modeling.roi_heads import MASK_TRAIN_BOXES

    for key, choices in {
        "PSIS.MISSING_MASKS": MISSING_MASKS,
        "PSIS.TRAIN_ONLY": ("", *PARTS),
        "PSIS.MASK_TRAIN_BOXES": MASK_TRAIN_BOXES,
        "PSIS.CONDINST.SUPERVISION": LOSSES,
        "PSIS.FCOS.BBOX_REG_LOSS_TYPE": ("released_giou", *BOX_LOSSES),
        "PSIS.TEACHER_STUDENT.POSTPROCESS": POSTPROCESSINGS,
        "TEST.BOXES": TEST_BOXES,
        "TEST.MASKS": TEST_MASKS,
    }.items():
        assert set(checked_keys()[key].check.choices) == set(choices), key


def test_check_choice_has_a_hint():
    with pytest.raises(UserError, match=r"^KEY is 'Gt'; choose one of gt, both \(did you mean gt"):
        check_choice("KEY", "Gt", ("gt", "both"))
    with pytest.raises(UserError, match=r"^KEY is 'zzz'; choose one of gt, both\.$"):
        check_choice("KEY", "zzz", ("gt", "both"))


def test_a_range_of_sizes_has_two_ends():
    sampling = {"INPUT__MIN_SIZE_TRAIN_SAMPLING": "range"}
    check_config(config(INPUT__MIN_SIZE_TRAIN=(160, 192), **sampling))
    words = refusal(check_config, config(INPUT__MIN_SIZE_TRAIN=(192,), **sampling))
    assert words.startswith("INPUT.MIN_SIZE_TRAIN is [192], but MIN_SIZE_TRAIN_SAMPLING range")
