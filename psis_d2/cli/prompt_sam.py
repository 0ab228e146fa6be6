"""Give every box of a COCO json the mask that Segment Anything draws in it.

    psis-d2 prompt-sam sam_vit_b_01ec64.pth --kind vit_b \\
        --images photos/ --boxes boxes.json --output sam.json

The result can be measured (TEST.MASKS sam.json) and trained on (PSIS.MISSING_MASKS sam.json). Needs
the package segment-anything, or sam2 where --kind is one of its configs.
"""

import argparse

from psis_d2.cli._labeling import add_labeling_arguments, read_labeling, report_labeling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 prompt-sam``."""
    parser.add_argument("checkpoint", help="weights of Segment Anything")
    parser.add_argument("--kind", default="vit_b", help="vit_b, vit_l, vit_h, or a yaml of sam2")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")
    add_labeling_arguments(parser, boxes_required=True)


def run(args: argparse.Namespace) -> None:
    """Load the model and draw all masks."""
    from psis_d2.inference.autolabel import autolabel
    from psis_d2.inference.prompted import load_sam

    predictor = load_sam(args.kind, args.checkpoint, args.device)
    report = autolabel(
        predictor, args.images, args.output, boxes=args.boxes, labeling=read_labeling(args)
    )
    report_labeling(report, args.output)
