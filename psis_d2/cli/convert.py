"""Convert a released checkpoint of another code base into one of psis_d2.

    psis-d2 convert --from adelaidet --config-file boxinst_R50 released.pth converted.pth

The config is that of the model which was trained; with other classes or layers, say so in KEY VALUE
pairs after the files. Nothing in the file is executed. docs/checkpoints.md says what is known of
each source.
"""

import argparse

from psis_d2.config import add_psis_config
from psis_d2.config_files import merge_file, merge_options
from psis_d2.converters import SOURCES, convert_checkpoint

from detectron2.config import get_cfg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The source, the config and the two files."""
    parser.add_argument("--from", dest="source", required=True, choices=list(SOURCES))
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of psis_d2's model")
    parser.add_argument("checkpoint", help="the released file")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")


def run(args: argparse.Namespace) -> None:
    """Convert, and say what the weights are to be run with."""
    cfg = get_cfg()
    add_psis_config(cfg)
    merge_file(cfg, args.config_file)
    merge_options(cfg, args.opts)
    options = convert_checkpoint(args.source, args.checkpoint, args.output, cfg)
    words = " ".join(f'"{x}"' if " " in x else x for x in options)
    print(f"Wrote {args.output}; run it with MODEL.WEIGHTS {args.output} {words}".rstrip())
