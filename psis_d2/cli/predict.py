"""Find the objects of images and videos and draw their masks.

    psis-d2 predict model.pth photos/ --output out
    psis-d2 predict model.pth "photos/*.jpg" video.mp4 --output out --min-score 0.3
    psis-d2 predict model.pth photos/ --boxes photos.json --heat-maps --categories unseen

Writes an overlay of each image and video, categories without masks in training marked by a star,
and results.json in COCO's result format. A run that was stopped goes on where it stopped.
--heat-maps draws what CPMask, OPMask or ShapeProp saw beside its masks (NAME.heat-maps.png): each
map has a scale of its own, written above it, blue the lowest value and yellow the highest; a dashed
red line is the annotated mask of --boxes. --save-heat-maps writes the maps themselves, for psis-d2
analyze best-overlap.
"""

import argparse

from psis_d2.cli._model import add_model_arguments, load_predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 predict``."""
    add_model_arguments(parser)
    parser.add_argument("inputs", nargs="*", help="images, videos, folders, patterns")
    parser.add_argument("--webcam", type=int, metavar="N", help="camera to record until Ctrl-C")
    parser.add_argument("--frames", type=int, metavar="N", help="at most N frames of each video")
    parser.add_argument("--output", default="predictions", help="folder to write to")
    parser.add_argument("--min-score", type=float, default=0.5, help="of detections")
    parser.add_argument(
        "--boxes", metavar="FILE", help="COCO json: its boxes in place of the model's detections"
    )
    parser.add_argument(
        "--categories", default="all", metavar="WHICH", help="all (default), seen or unseen"
    )
    parser.add_argument("--heat-maps", action="store_true", help="draw what the mask head saw")
    parser.add_argument(
        "--save-heat-maps", action="store_true", help="write them as NAME.heat-maps.npz"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw no overlays")


def run(args: argparse.Namespace) -> None:
    """Predict, and say what was written."""
    from psis_d2.errors import UserError
    from psis_d2.inference import predict

    if not args.inputs and args.webcam is None:
        raise UserError("Nothing is given to predict on; name images or videos, or --webcam N.")
    predictor = load_predictor(args)
    count = predict(
        predictor,
        args.inputs,
        args.output,
        min_score=args.min_score,
        pictures=not args.no_pictures,
        webcam=args.webcam,
        frames=args.frames,
        boxes=args.boxes,
        categories=args.categories,
        heat_maps=args.heat_maps,
        save_heat_maps=args.save_heat_maps,
    )
    print(f"{count} objects; pictures and results.json are in {args.output}")
