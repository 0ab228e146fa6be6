"""A whole run: train and evaluate, or evaluate alone, in as many processes as it takes."""

import argparse
import logging
from collections.abc import Sequence

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.data.foreign_masks import names_file
from psis_d2.engine.checkpoint import remove_leftovers
from psis_d2.engine.expectations import verify_expected
from psis_d2.engine.launch import follow_torchrun, is_first, launch
from psis_d2.engine.lock import locked
from psis_d2.engine.logs import failing_with_the_disk, keeping_messages
from psis_d2.engine.resources import keep_freed_memory
from psis_d2.engine.setup import (
    build_config,
    choose_gpus,
    prepare_data,
    setup_run,
    with_seen,
)
from psis_d2.engine.signals import SignalGate
from psis_d2.engine.split import adopt_split, with_classes_of_checkpoint
from psis_d2.engine.trainer import Trainer, build_checkpointer
from psis_d2.errors import UserError

from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def train(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    seen: str = "",
    resume: bool = False,
    eval_only: bool = False,
    num_gpus: int | None = None,
    num_cpu_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    train_json: str | None = None,
    train_images: str | None = None,
    val_json: str | None = None,
    val_images: str | None = None,
    trust_checkpoint: bool = False,
    allow_random: bool = False,
) -> None:
    """Do what ``psis-d2 train`` does; results and checkpoints are in the config's ``OUTPUT_DIR``.

    Several processes are spawned: a script that calls this does so below
    ``if __name__ == "__main__":``.

    Args:
        config_file: a file, or a name as of :func:`psis_d2.model_zoo.get_config_file`.
        opts: ``KEY VALUE`` pairs of the config.
        seen: see :func:`psis_d2.engine.setup.with_seen`.
        resume: go on from the last checkpoint in ``OUTPUT_DIR``.
        eval_only: evaluate ``MODEL.WEIGHTS`` instead of training.
        num_gpus: of each machine; 0 = run on the CPU, None = one GPU if there is one.
        num_cpu_processes: processes of each machine if ``num_gpus`` is 0.
        num_machines, machine_rank, dist_url: see :func:`psis_d2.engine.launch.launch`.
        train_json, train_images, val_json, val_images: COCO-format annotations and their images,
            in place of ``DATASETS.*``.
        trust_checkpoint: run code that a file of weights holds.
        allow_random: go on with weights that do not fit the model, which stay random.

    Raises:
        UserError: something in the arguments or the config cannot be used.
        LostProcess: one of several processes has died or hangs.
        SystemExit: one of the processes has ended with a status, or a signal has ended the run.
    """
    args = argparse.Namespace(**locals())
    follow_torchrun()
    args = with_seen(args)
    args.num_gpus = choose_gpus(args.num_gpus)
    args = with_classes_of_checkpoint(args)
    cfg = build_config(args)
    with SignalGate(), locked(cfg.OUTPUT_DIR if is_first(args.machine_rank) else ""):
        remove_leftovers(cfg.OUTPUT_DIR)
        # once here, not once in every process
        with keeping_messages():
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


def run_process(args: argparse.Namespace) -> dict | None:
    """One process of a run. Returns the last evaluation's results on the main process.

    Args:
        args: the arguments of :func:`train`, ``num_gpus`` being a number.
    """
    trusted = {"trust_checkpoint": args.trust_checkpoint, "allow_random": args.allow_random}
    cfg = build_config(args)
    if args.eval_only:
        cfg = adopt_split(cfg, args.resume, chosen="PSIS.SEEN_CLASSES" in (args.opts or ()))
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    with failing_with_the_disk():
        setup_run(cfg, args)
        if args.eval_only:
            return evaluate(cfg, args.resume, **trusted)
        trainer = Trainer(cfg, **trusted)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def evaluate(
    cfg: CfgNode, resume: bool, *, trust_checkpoint: bool = False, allow_random: bool = False
) -> dict:
    """Load weights, evaluate, and verify the results against ``TEST.EXPECTED_RESULTS``.

    A file of masks (``TEST.MASKS``) is measured without weights.

    Args:
        cfg: names the weights in ``MODEL.WEIGHTS``.
        resume: take the last checkpoint in ``OUTPUT_DIR`` instead.
        trust_checkpoint, allow_random: see :func:`train`.
    """
    model = Trainer.build_model(cfg)
    if names_file(cfg.TEST.MASKS):
        return Trainer.test(cfg, model)  # whose masks are not asked for
    checkpointer = build_checkpointer(cfg, model, trust=trust_checkpoint, allow_random=allow_random)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError(
            "--eval-only needs weights: add MODEL.WEIGHTS FILE, or --resume where OUTPUT_DIR has a "
            "checkpoint."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if note := checkpointer.split_note():
        logger.warning("This evaluation is under another split than the training: %s.", note)
        note = f"another split: {note}"
    results = Trainer.test(cfg, model, note=note)
    if comm.is_main_process():
        verify_expected(cfg, results)
    return results
