#!/usr/bin/env python3
"""Train and evaluate any psis_d2 model.

    python train_net.py --config-file configs/shapeprop_R50.yaml --num-gpus 8
    python train_net.py --config-file configs/shapeprop_R50.yaml --eval-only MODEL.WEIGHTS model.pth

Detectron2's training script in its short form, with flags for data that nobody has registered.
"""

import sys

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.engine import Trainer, launch
from psis_d2.engine.expectations import verify_expected
from psis_d2.engine.setup import (
    add_data_arguments,
    build_config,
    choose_gpus,
    prepare_data,
    setup_run,
)
from psis_d2.engine.trainer import build_checkpointer
from psis_d2.errors import UserError, exit_on_user_error

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException


def parse_arguments(argv: list[str] | None = None):
    """Detectron2's flags, those for unregistered data, and the number of CPU processes."""
    parser = default_argument_parser()
    parser.set_defaults(num_gpus=None, dist_url="auto")
    add_data_arguments(parser)
    parser.add_argument(
        "--num-cpu-processes",
        type=int,
        default=1,
        help="processes per machine of a run without GPUs",
    )
    return parser.parse_args(argv)


def evaluate(cfg, resume: bool) -> dict:
    """Load weights, evaluate, and verify the results against ``TEST.EXPECTED_RESULTS``."""
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError(
            "--eval-only needs weights: add MODEL.WEIGHTS FILE, or --resume where OUTPUT_DIR has a "
            "checkpoint."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_expected(cfg, results)
    return results


def main(args) -> dict | None:
    """One process of a run. Returns the last evaluation's results on the main process."""
    with exit_on_user_error():
        cfg = build_config(args)
        setup_run(cfg, args)
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def invoke_main(argv: list[str] | None = None) -> None:
    """Parse the command line and start the processes that it asks for."""
    args = parse_arguments(argv)
    with exit_on_user_error():
        args.num_gpus = choose_gpus(args.num_gpus)
        # once here, not once in every process
        prepare_data(build_config(args), training=not args.eval_only)
        try:
            launch(
                main,
                num_gpus=args.num_gpus,
                num_cpu_processes=args.num_cpu_processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:
            sys.exit(error.exit_code)  # the process itself said why


if __name__ == "__main__":
    invoke_main()
