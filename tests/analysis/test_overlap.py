"""AP by bins of overlap: COCO's own over one bin, a slow literal one over several, one by hand."""

import math
from dataclasses import replace

from psis_d2.analysis import ap_by_overlap
from psis_d2.errors import UserError
from psis_d2.evaluation.average_precision import average_precision, summarize
from psis_d2.evaluation.ground_truth import load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
import pytest
from pycocotools import mask as mask_util

from random_results import CLASSES, random_case
from tiny_coco import predictions, rectangle

GROUPS = {"seen": [0, 1], "unseen": [2, 3, 4], "all": list(range(CLASSES))}
THRESHOLDS = np.linspace(0.5, 0.95, 10)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(3))
def test_the_bin_from_0_to_1_is_cocos_own(kind, seed):
    truth, found = random_case(seed, images=20)
    rows = ap_by_overlap(truth, found, GROUPS, [0, 1], kind=kind)
    precision = average_precision(truth, found, kind, library="pycocotools").precision
    assert [row["group"] for row in rows] == list(GROUPS)
    for row in rows:
        expected = summarize(precision, GROUPS[row["group"]])
        for name, value in expected.items():
            assert row[name] == value or math.isnan(row[name]) and math.isnan(value)
    assert sum(0 < row["AP"] < 100 for row in rows) == 3


def literal_overlap(truth, annotation):
    """Eq. 1, pixel by pixel."""
    box = rectangle([int(x) for x in annotation["bbox"]], truth.image_sizes[annotation["image_id"]])
    shares = [0.0]
    for other in truth.annotations:
        if other["image_id"] != annotation["image_id"] or other is annotation:
            continue
        if "segmentation" in other and not other["iscrowd"]:
            mask = mask_util.decode(other["segmentation"]) > 0
            shares.append((box & mask).sum() / box.sum())
    return max(shares)


def literal_ap(truth, found, low, high, category):
    """AP of one category in one bin: every pair of masks, greedy matching, 101 recalls."""
    overlap = {id(a): literal_overlap(truth, a) for a in truth.annotations}
    per_threshold = []
    for threshold in THRESHOLDS:
        outcomes, number = [], 0
        for image in truth.image_sizes:
            own = [
                a
                for a in truth.annotations
                if a["image_id"] == image and a["category_id"] == category
            ]
            own = [a for a in own if "segmentation" in a or a["iscrowd"]]
            counts = [
                not a["iscrowd"] and (low < overlap[id(a)] <= high or overlap[id(a)] == low == 0)
                for a in own
            ]
            number += sum(counts)
            of_image = [p for p in found if p.image_id == image]
            taken = set()
            for part in of_image:
                rows = [r for r in range(len(part)) if part.classes[r] == category]
                for row in sorted(rows, key=lambda r: -part.scores[r])[:100]:
                    mask = mask_util.decode(part.masks()[row]) > 0
                    best, chosen = threshold, None
                    # Those that count first; the others are asked if none of these fits.
                    for wanted in (True, False):
                        for place, a in enumerate(own):
                            if counts[place] != wanted or (place in taken and not a["iscrowd"]):
                                continue
                            theirs = mask_util.decode(a["segmentation"]) > 0
                            whole = mask.sum() if a["iscrowd"] else (mask | theirs).sum()
                            iou = (mask & theirs).sum() / max(whole, 1)
                            if iou >= min(best, 1 - 1e-10):
                                best, chosen = iou, place
                        if chosen is not None:
                            break
                    if chosen is None:
                        outcomes.append((part.scores[row], False))
                        continue
                    taken.add(chosen)
                    if counts[chosen]:
                        outcomes.append((part.scores[row], True))
        if not number:
            return math.nan
        outcomes.sort(key=lambda x: -x[0])
        right = np.cumsum([x[1] for x in outcomes])
        precision = right / np.arange(1, len(outcomes) + 1)
        recall = right / number
        at = [
            max((p for p, r in zip(precision, recall, strict=True) if r >= wanted), default=0)
            for wanted in np.linspace(0, 1, 101)
        ]
        per_threshold.append(np.mean(at))
    return 100 * float(np.mean(per_threshold))


def with_own_crowds(truth):
    """Crowd regions with a mask in the text, objects without one left out: their rule is another's.

    What becomes of detections on objects without a mask is tested in test_average_precision.
    """
    kept = [a for a in truth.annotations if "segmentation" in a]
    return replace(truth, annotations=kept)


def test_by_the_letter_on_random_scenes():
    truth, found = random_case(11, images=8)
    truth = with_own_crowds(truth)
    edges = [0, 0.2, 0.6, 1]
    categories = {str(c): [c] for c in range(4)}
    rows = ap_by_overlap(truth, found, categories, edges)
    assert len(rows) == 12
    for row in rows:
        expected = literal_ap(truth, found, row["above"], row["to"], int(row["group"]))
        assert row["AP"] == pytest.approx(expected, nan_ok=True), row
    assert len({round(row["AP"], 3) for row in rows}) > 8


def converted(image, instances):
    return ImagePredictions.from_instances(instances, image)


def test_by_hand(tiny):
    """A lone object, one of overlap 0.3 and one of 0.1, as in the tests of Eq. 1."""
    data = tiny()
    image = data.image()
    data.add(image, 0, [10, 10, 20, 20])  # rows 24 to 29 lie in the third
    data.add(image, 0, [60, 60, 20, 20])
    data.add(image, 1, [10, 24, 40, 30])  # of which the first covers 120 of 1200
    truth = load_ground_truth(data.register())
    found = [
        converted(
            image,
            predictions(
                (0, [60, 60, 20, 20], 0.9),  # the lone one
                (0, [0, 80, 15, 15], 0.8),  # nothing
                (0, [10, 10, 20, 20], 0.7),
                (1, [10, 24, 40, 30], 0.6),
            ),
        )
    ]
    rows = ap_by_overlap(truth, found, {"a": [0], "b": [1]}, [0, 0.1, 0.2, 0.4])
    by = {(row["to"], row["group"]): row for row in rows}
    # Overlap 0 and 0.1 are in the first bin, the right edge belongs to it.
    assert by[0.1, "a"]["objects"] == by[0.1, "b"]["objects"] == 1
    assert by[0.1, "a"]["AP"] == pytest.approx(100) and by[0.1, "b"]["AP"] == pytest.approx(100)
    assert by[0.2, "a"]["objects"] == 0 and math.isnan(by[0.2, "a"]["AP"])
    # Wrong, then right.
    assert by[0.4, "a"]["AP"] == pytest.approx(50) and math.isnan(by[0.4, "b"]["AP"])


@pytest.mark.parametrize("edges", [[0.5], [0, 0.5, 0.5], [0.2, 0.1], [-0.1, 1], [0, 1.1]])
def test_edges_that_make_no_bins(edges):
    truth, found = random_case(0, images=2)
    with pytest.raises(UserError, match="make no bins; give two or more rising"):
        ap_by_overlap(truth, found, GROUPS, edges)
