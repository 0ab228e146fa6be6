"""The flags by which subcommands name a trained model."""

import argparse


def add_model_arguments(parser: argparse.ArgumentParser, device: str | None = None) -> None:
    """The model, and what is needed where its file does not say everything.

    Args:
        parser: of the subcommand.
        device: the default device, None = a GPU if there is one.
    """
    parser.add_argument("model", help="checkpoint: a file, or an address such as psis_d2://NAME")
    parser.add_argument(
        "--config-file", metavar="FILE", help="its config, if the checkpoint holds none"
    )
    parser.add_argument(
        "--device",
        default=device,
        help=f"such as cpu or cuda:1; default: {device or 'a GPU if there is one'}",
    )
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="changes of the config"
    )


def load_predictor(args: argparse.Namespace):
    """The :class:`psis_d2.Predictor` that the flags name."""
    from psis_d2.inference import Predictor

    return Predictor(args.model, config=args.config_file, opts=args.opts, device=args.device)
