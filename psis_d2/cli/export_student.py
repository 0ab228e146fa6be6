"""Leave the teacher out of a trained teacher-student model.

    psis-d2 export-student --config-file teacher_student_R50 --output student.pth \\
        MODEL.WEIGHTS output/teacher_student_R50/model_final.pth

Writes the checkpoint and, beside it, the config to use it with (student.yaml): the same one with
PSIS.TEACHER_STUDENT.STUDENT_ONLY. The optimizer's state is left out, too: nothing is left to train.
"""

import argparse
import os

from psis_d2.engine.export import export_student
from psis_d2.engine.setup import add_data_arguments, build_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `psis-d2 train`, as far as they matter here, and the file to write."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--output", required=True, metavar="FILE.pth", help="checkpoint to write")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., with MODEL.WEIGHTS")


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    args.num_gpus = 0
    left_out = export_student(build_config(args), args.output)
    config = f"{os.path.splitext(args.output)[0]}.yaml"
    print(f"{args.output} has no teacher ({left_out} numbers less); use it with its config:")
    print(f"psis-d2 train --config-file {config} --eval-only")
