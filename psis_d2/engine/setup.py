"""From a command line to a config, a device and a logger."""

import argparse
import functools
import logging
import os

from psis_d2.config import add_psis_config
from psis_d2.data.build import (
    get_class_names,
    get_model_class_ids,
    get_model_class_names,
    get_training_dicts,
    prepare_dataset,
)
from psis_d2.data.coco import register_coco_json
from psis_d2.data.shape_priors import prepare_shape_priors
from psis_d2.engine.schedule import scale_to_batch
from psis_d2.errors import UserError

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name COCO-format data by its files."""
    group = parser.add_argument_group("any COCO-format data set, in place of DATASETS.*")
    for split in ("train", "val"):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations to {split} on")
        group.add_argument(f"--{split}-images", metavar="FOLDER", help="their images")


def choose_gpus(asked: int | None) -> int:
    """How many GPUs of this machine a run uses.

    Args:
        asked: ``--num-gpus``, None if it was not given.

    Raises:
        UserError: if more are asked for than there are.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked is None:
        if there == 0:
            print("No CUDA GPU here: running on the CPU (--num-gpus 0 says so without this line).")
        return min(there, 1)
    if asked > there:
        raise UserError(
            f"--num-gpus {asked} asks for more than the {there} GPU(s) of this machine; lower it "
            "(0 runs on the CPU)."
        )
    return asked


def build_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line.

    Args:
        args: ``config_file``, ``opts``, ``num_gpus`` and the flags of :func:`add_data_arguments`.

    Raises:
        UserError: for a config file or key that does not exist, and for inconsistent data.
    """
    cfg = get_cfg()
    add_psis_config(cfg)
    if args.config_file and not os.path.isfile(args.config_file):
        raise UserError(f"The config file {args.config_file} does not exist; see configs/.")
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        batch = cfg.SOLVER.IMS_PER_BATCH
        _use_data_files(cfg, args)
        cfg.merge_from_list(args.opts or [])
    except (KeyError, ValueError, AssertionError) as error:
        # yacs: an unknown key, a value of another type, an odd number of words
        reason = str(error.args[0] if error.args else error).rstrip(".")
        raise UserError(
            f"The config cannot be used ({reason}); fix the file or the KEY VALUE pairs."
        ) from error
    if scaled := scale_to_batch(cfg, batch, args.opts or []):
        _say_once(scaled)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if getattr(args, "resume", False):
        _skip_initial_weights(cfg)
    check_classes(cfg)
    no_masks = not cfg.MODEL.MASK_ON and cfg.TEST.MASKS == "model"
    if no_masks and cfg.TEST.BOXES != "detected":
        raise UserError(
            f"TEST.BOXES {cfg.TEST.BOXES} measures masks in given boxes, but MODEL.MASK_ON False "
            "predicts none; set TEST.BOXES to detected."
        )
    cfg.freeze()
    return cfg


@functools.cache
def _say_once(sentence: str) -> None:
    if comm.is_main_process():
        print(sentence)


def _skip_initial_weights(cfg: CfgNode) -> None:
    """Name the checkpoint that a run resumes from, so that no builder looks for other weights."""
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not cfg.MODEL.WEIGHTS and os.path.isfile(last):
        with open(last, encoding="utf-8") as file:
            cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, file.read().strip())


def _use_data_files(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Point the config at the files of ``--train-json`` and so on, in place."""
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        json_file = getattr(args, f"{split}_json", None)
        images = getattr(args, f"{split}_images", None)
        if bool(json_file) != bool(images):
            raise UserError(f"--{split}-json and --{split}-images belong together; give both.")
        if json_file:
            name = f"{split}:{json_file}"
            register_coco_json(name, json_file, images)
            cfg.DATASETS[key] = (name,)
            num_classes = len(get_class_names(name))
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
            cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
            if split == "train":
                cfg.PSIS.SEEN_CLASSES = "auto"
    if getattr(args, "train_json", None) and not getattr(args, "val_json", None):
        logger.warning("No --val-json: nothing will be evaluated.")
        cfg.DATASETS.TEST = ()


def check_classes(cfg: CfgNode) -> None:
    """All data sets of a config must have the model's number of classes, and the same ones.

    With ``PSIS.CATEGORY_MAP``, they may have others that it leads to the model's.

    Raises:
        UserError: if not.
    """
    if cfg.PSIS.CATEGORY_MAP:
        _check_mapped_classes(cfg)
        return
    first = None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = list(MetadataCatalog.get(name).get("thing_classes", []))
        if not classes:  # known only once it has been read
            continue
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"The data set {name} has {len(classes)} classes, the model "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set MODEL.ROI_HEADS.NUM_CLASSES to the former."
            )
        if first is not None and classes != first[1]:
            differing = [f"{a} / {b}" for a, b in zip(first[1], classes, strict=True) if a != b]
            raise UserError(
                f"The data sets {first[0]} and {name} name their classes differently "
                f"({', '.join(differing[:5])}); make their categories agree."
            )
        first = first or (name, classes)


def _check_mapped_classes(cfg: CfgNode) -> None:
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names:
        return
    num_classes = len(get_model_class_names(cfg))
    if num_classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"The data set {names[0]} gives the model {num_classes} classes, but it has "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set MODEL.ROI_HEADS.NUM_CLASSES to the former."
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PartialRPN":
        raise UserError(
            f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME} would take objects "
            "that are not annotated for background; use PartialRPN with PSIS.CATEGORY_MAP."
        )
    for name in names:
        get_model_class_ids(cfg, name)  # says what is wrong with the map


def prepare_data(cfg: CfgNode, training: bool = True) -> None:
    """Make what a config needs and what is not there yet: data sets, GrabCut masks, shape priors.

    Called once before several processes start, which would otherwise each make them.

    Args:
        cfg: the config.
        training: whether the run will train.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        prepare_dataset(name)
    if training and cfg.PSIS.MISSING_MASKS != "none":
        get_training_dicts(cfg)
    if training:
        prepare_shape_priors(cfg)


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Output folder, loggers, seeds: Detectron2's set-up, and a logger of our own.

    What ``TEST.EXPECTED_RESULTS`` says of boxes that ``TEST.BOXES`` leaves out goes from ``cfg``.
    """
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="psis_d2")
    if left_out := _leave_out_unmeasured(cfg):
        logger.warning(
            "TEST.BOXES %s does not measure %s: these TEST.EXPECTED_RESULTS are not verified.",
            cfg.TEST.BOXES,
            ", ".join(left_out),
        )


def _leave_out_unmeasured(cfg: CfgNode) -> list[str]:
    """Take rows about the other kind of boxes out of ``TEST.EXPECTED_RESULTS``; their tasks."""
    other_kind = {"detected": True, "gt": False}.get(cfg.TEST.BOXES)  # of given boxes or not
    expected = cfg.TEST.EXPECTED_RESULTS
    left_out = [row for row in expected if ("gtbox" in row[0]) is other_kind]
    if left_out:
        cfg.defrost()
        cfg.TEST.EXPECTED_RESULTS = [row for row in expected if row not in left_out]
        cfg.freeze()
    return [row[0] for row in left_out]
