"""Analyze saved predictions as the papers' figures do; no model is run.

    psis-d2 analyze overlap --truth val.json --predictions coco_instances_results.json --seen voc
    psis-d2 analyze false-positives --truth val.json --seen voc \\
        --predictions partial=a.json --predictions full=b.json
    psis-d2 analyze best-overlap --truth val.json --maps predictions/
    psis-d2 analyze curve --runs runs.csv --metric segm_unseen/AP

Each writes OUTPUT.csv and OUTPUT.png, a plot of these numbers. Predictions are what evaluations
leave in OUTPUT_DIR/inference, for --truth a json or a data set's name; maps from
psis-d2 predict --save-heat-maps.
"""

import argparse
import os

from psis_d2.analysis import best_overlap, curve, false_positives, overlap, plots, saved
from psis_d2.analysis.tables import write_csv
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.errors import UserError
from psis_d2.evaluation.base import class_groups


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The analyses, each with what it reads."""
    names = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")

    bins = names.add_parser("overlap", help="AP of objects by how far others reach into them")
    _add_predictions(bins)
    bins.add_argument(
        "--edges",
        type=float,
        nargs="+",
        default=list(overlap.EDGES),
        metavar="X",
        help="of the bins, rising from 0 to 1; default: steps of 0.1",
    )
    bins.add_argument(
        "--kind",
        default="segm",
        choices=("segm", "boundary", "bbox"),
        help="masks (default), masks by Boundary IoU, or boxes",
    )
    bins.add_argument("--max-dets", type=int, default=100, help="per image and category")

    wrong = names.add_parser("false-positives", help="what lies where masks are wrong")
    _add_predictions(wrong)
    wrong.add_argument("--min-score", type=float, default=0.0, help="of detections")

    shapes = names.add_parser("best-overlap", help="how well heat-maps cover objects, by size")
    _add_truth(shapes)
    shapes.add_argument(
        "--maps", required=True, metavar="FOLDER", help="of predict --save-heat-maps"
    )

    runs = names.add_parser("curve", help="one number of many runs over categories or images")
    runs.add_argument(
        "--runs", required=True, metavar="FILE", help="csv: series, results, and split or x"
    )
    runs.add_argument("--metric", default=curve.METRIC, help=f"default: {curve.METRIC}")
    runs.add_argument(
        "--relative-to", default="", metavar="SERIES", help="show the change in percent from it"
    )
    runs.add_argument(
        "--train-json", metavar="FILE", help="x is the mean number of objects of a seen category"
    )
    runs.add_argument("--x-label", default="", metavar="TEXT")
    runs.add_argument("--log", action="store_true", help="x is logarithmic, such as a share")

    for name, own in names.choices.items():
        own.add_argument(
            "--output", default=name.replace("-", "_"), metavar="PATH", help="without its ending"
        )


def _add_truth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truth", required=True, help="annotations: a json, or a data set's name")


def _add_predictions(parser: argparse.ArgumentParser) -> None:
    _add_truth(parser)
    parser.add_argument(
        "--predictions",
        required=True,
        action="append",
        metavar="[LABEL=]FILE",
        help="json of predictions, may be repeated",
    )
    parser.add_argument(
        "--seen", required=True, metavar="SPLIT", help="as PSIS.SEEN_CLASSES, such as voc"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, write, and say where."""
    analyses = {
        "overlap": _overlap,
        "false-positives": _false_positives,
        "best-overlap": _best_overlap,
        "curve": _curve,
    }
    rows, figure = analyses[args.analysis](args)
    write_csv(f"{args.output}.csv", rows)
    plots.save_figure(f"{args.output}.png", figure)
    print(f"{len(rows)} rows are in {args.output}.csv, a plot of them in {args.output}.png")


def _of_each(args: argparse.Namespace, truth, measure) -> list[dict]:
    """The rows of each file of predictions, with its label."""
    rows = []
    for entry in args.predictions:
        label, mark, path = entry.partition("=")
        if not mark or os.path.exists(entry):
            path = entry
            label = os.path.basename(os.path.dirname(os.path.abspath(path)))
        rows += [{"label": label, **row} for row in measure(saved.read_predictions(path, truth))]
    return rows


def _shown_group(groups) -> str:
    """The group that a plot shows: the papers look at unseen categories."""
    return "unseen" if "unseen" in groups else "all"


def _overlap(args: argparse.Namespace):
    overlap.check_edges(args.edges)
    truth = saved.read_truth(args.truth)
    seen = resolve_seen_classes(args.seen, truth.class_names, key="--seen")
    groups = class_groups(seen, len(truth.class_names))
    rows = _of_each(
        args,
        truth,
        lambda predictions: overlap.ap_by_overlap(
            truth,
            predictions,
            groups,
            args.edges,
            kind=args.kind,
            max_dets=args.max_dets,
            progress=True,
        ),
    )
    return rows, plots.plot_overlap(rows, _shown_group(groups))


def _false_positives(args: argparse.Namespace):
    truth = saved.read_truth(args.truth)
    seen = set(resolve_seen_classes(args.seen, truth.class_names, key="--seen"))
    rows = _of_each(
        args,
        truth,
        lambda predictions: false_positives.attribute_false_positives(
            truth, predictions, seen, min_score=args.min_score, progress=True
        ),
    )
    return rows, plots.plot_false_positives(rows, _shown_group({row["group"] for row in rows}))


def _best_overlap(args: argparse.Namespace):
    truth = saved.read_truth(args.truth)
    rows = best_overlap.best_overlaps(
        truth, best_overlap.read_maps(args.maps, truth), progress=True
    )
    if not rows:
        raise UserError(f"No box of {args.maps} meets an object with a mask of {args.truth}.")
    return rows, plots.plot_best_overlap(rows)


def _curve(args: argparse.Namespace):
    truth = saved.read_truth(args.train_json) if args.train_json else None
    rows = curve.curve_rows(
        curve.read_runs(args.runs),
        metric=args.metric,
        truth=truth,
        relative_to=args.relative_to,
    )
    x_label = "seen categories"
    if truth is not None:
        x_label = "mean number of training objects of a seen category"
    y_label = curve.spoken_metric(args.metric)
    if args.relative_to:
        y_label = f"change of {y_label} from {args.relative_to} (%)"
    return rows, plots.plot_curve(rows, args.x_label or x_label, y_label, log=args.log)
