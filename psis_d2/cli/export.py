"""Write a trained model as TorchScript or ONNX, to run without psis_d2.

    psis-d2 export MODEL --format torchscript --output model.ts --image photo.jpg
    psis-d2 export MODEL --format onnx --output model.onnx --image photo.jpg

The file takes one image [3, H, W] of any size and gives boxes, classes, scores and soft masks; what
it has to know of the input, and the names of its classes, are in it. It is compared with the model
before it is written. docs/export.md says which models can be exported, and how to run the file.
"""

import argparse

from psis_d2.cli._model import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the file, and the image to trace it on."""
    add_model_arguments(parser, device="cpu")
    parser.add_argument(
        "--format", default="torchscript", choices=("torchscript", "onnx"), help="of the file"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--image", metavar="FILE", help="picture with objects to trace on; default: noise"
    )


def run(args: argparse.Namespace) -> None:
    """Export, and say how far the file is from the model."""
    from psis_d2.export import export_model, load_for_export
    from psis_d2.inference.media import read_picture

    image = None if args.image is None else read_picture(args.image)
    predictor = load_for_export(
        args.model, config=args.config_file, opts=args.opts, device=args.device
    )
    done = export_model(predictor, args.output, args.format, image)
    gaps = ", ".join(f"{name} {gap:.1g}" for name, gap in done.differences.items())
    print(f"{done.path}: equal to the model on three images but for {gaps}")
