#!/usr/bin/env python3
"""Train and evaluate any psis_d2 model.

    python train_net.py --config-file configs/shapeprop_R50.yaml --num-gpus 8
    python train_net.py --config-file configs/shapeprop_R50.yaml --eval-only MODEL.WEIGHTS model.pth

Detectron2's training script in its short form, with flags for data that nobody has registered.
"""

import logging

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.engine import Trainer, launch
from psis_d2.engine.checkpoint import remove_leftovers
from psis_d2.engine.launch import is_first
from psis_d2.engine.lock import locked
from psis_d2.engine.logs import failing_with_the_disk
from psis_d2.engine.setup import (
    add_data_arguments,
    build_config,
    choose_gpus,
    prepare_data,
    setup_run,
)
from psis_d2.engine.signals import SignalGate
from psis_d2.engine.split import adopt_split
from psis_d2.engine.trainer import build_checkpointer
from psis_d2.errors import UserError, exit_on_user_error

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

logger = logging.getLogger("psis_d2.train_net")


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
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run code that a file of weights holds; only for files whose origin you know",
    )
    parser.add_argument(
        "--allow-random",
        action="store_true",
        help="go on with weights that do not fit the model, which stay random",
    )
    return parser.parse_args(argv)


def evaluate(cfg, args) -> dict:
    """Load weights, evaluate, and verify the results against ``TEST.EXPECTED_RESULTS``."""
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(
        cfg, model, trust=args.trust_checkpoint, allow_random=args.allow_random
    )
    if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
        raise UserError(
            "--eval-only needs weights: add MODEL.WEIGHTS FILE, or --resume where OUTPUT_DIR has a "
            "checkpoint."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if note := checkpointer.split_note():
        logger.warning("This evaluation is under another split than the training: %s.", note)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def run_process(args) -> dict | None:
    """One process of a run. Returns the last evaluation's results on the main process."""
    cfg = build_config(args)
    if args.eval_only:
        cfg = adopt_split(cfg, args.resume, chosen="PSIS.SEEN_CLASSES" in (args.opts or ()))
    with failing_with_the_disk():
        setup_run(cfg, args)
        if args.eval_only:
            return evaluate(cfg, args)
        trusted = {"trust_checkpoint": args.trust_checkpoint, "allow_random": args.allow_random}
        trainer = Trainer(cfg, **trusted)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def main(args) -> dict | None:
    """A run in this process alone; bad input ends it with one sentence."""
    with exit_on_user_error():
        return run_process(args)


def invoke_main(argv: list[str] | None = None) -> None:
    """Parse the command line and start the processes that it asks for."""
    args = parse_arguments(argv)
    with exit_on_user_error(), SignalGate():
        args.num_gpus = choose_gpus(args.num_gpus)
        cfg = build_config(args)
        with locked(cfg.OUTPUT_DIR if is_first(args.machine_rank) else ""):
            remove_leftovers(cfg.OUTPUT_DIR)
            # once here, not once in every process
            prepare_data(cfg, training=not args.eval_only)
            launch(
                run_process,
                num_gpus=args.num_gpus,
                num_cpu_processes=args.num_cpu_processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
                timeout=cfg.PSIS.PROCESS_TIMEOUT,
            )


if __name__ == "__main__":
    invoke_main()
