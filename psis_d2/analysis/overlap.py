"""AP of objects by how far other objects reach into them (Zhao et al., Fig. 2)."""

from collections.abc import Mapping, Sequence

from psis_d2.errors import UserError
from psis_d2.evaluation.average_precision import average_precision, summarize
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.predictions import ImagePredictions

from tqdm import tqdm

EDGES = tuple(i / 10 for i in range(11))


def check_edges(edges: Sequence[float]) -> None:
    """Make sure that bins rise from 0 or more to 1 or less.

    Raises:
        UserError: they do not.
    """
    rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
    if len(edges) < 2 or not rising or edges[0] < 0 or edges[-1] > 1:
        raise UserError(
            f"The edges {', '.join(f'{x:g}' for x in edges)} make no bins; give two or more rising "
            "numbers from 0 to 1."
        )


def ap_by_overlap(
    truth: GroundTruth,
    predictions: Sequence[ImagePredictions],
    groups: Mapping[str, Sequence[int]],
    edges: Sequence[float] = EDGES,
    *,
    kind: str = "segm",
    max_dets: int = 100,
    progress: bool = False,
) -> list[dict]:
    """COCO's AP on the objects of each bin of overlap (Eq. 1).

    An object is in the bin ``low < overlap <= high``, one of overlap 0 in a first bin that begins
    at 0. The others are set aside: neither they nor the detections that match them count. A
    detection that matches no object at all is an error in every bin. The bin from 0 to 1 therefore
    has COCO's own AP.

    Args:
        truth: the ground truth.
        predictions: at most one an image.
        groups: {name: contiguous category ids}.
        edges: of the bins, see :func:`check_edges`.
        kind: ``segm``, ``bbox`` or ``boundary``.
        max_dets: highest-scored detections per image and category that count.
        progress: show a bar.

    Returns:
        A row a bin and group: ``above``, ``to``, ``group``, ``objects`` (those that count) and
        COCO's six numbers in percent, nan where there is no object.

    Raises:
        UserError: the edges make no bins.
    """
    check_edges(edges)
    overlaps = truth.overlaps()
    bins = list(zip(edges, edges[1:], strict=False))
    counted = {
        (a["image_id"], a["id"]): a["category_id"]
        for a in truth.annotations
        if not a["iscrowd"] and (kind == "bbox" or "segmentation" in a)
    }
    rows = []
    for low, high in tqdm(bins, desc="overlap", unit="bin", disable=not progress):
        inside = {key for key, x in overlaps.items() if low < x <= high or x == low == 0}
        only = inside if len(inside) < len(overlaps) else None
        precision = average_precision(truth, predictions, kind, max_dets, only).precision
        for group, ids in groups.items():
            number = sum(counted.get(key) in ids for key in inside)
            row = {"above": low, "to": high, "group": group, "objects": number}
            rows.append(row | summarize(precision, ids))
    return rows
