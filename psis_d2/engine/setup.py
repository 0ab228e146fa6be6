"""From a command line to a config, a device and a logger."""

import argparse
import functools
import logging
import os
import tempfile

from psis_d2.config import add_psis_config
from psis_d2.config_files import check_part_options, merge_file, merge_options
from psis_d2.config_rules import check_config
from psis_d2.data.checks import check_data
from psis_d2.data.classes import check_classes, get_model_class_names
from psis_d2.data.coco import register_coco_json
from psis_d2.engine.expectations import settle_expectations
from psis_d2.engine.logs import write_kept
from psis_d2.engine.model_keys import check_model
from psis_d2.engine.schedule import scale_to_batch
from psis_d2.errors import UserError
from psis_d2.evaluation.mask_file_model import check_mask_file
from psis_d2.model_zoo import find_config_file
from psis_d2.modeling.mask_heads.base import prepare_mask_head

import torch
from detectron2.config import CfgNode, get_cfg
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


def with_seen(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of a run with ``--seen SPLIT`` as ``KEY VALUE`` pairs.

    These are ``PSIS.SEEN_CLASSES`` and, unless it is among the pairs or the config has that split
    already, ``OUTPUT_DIR``: that of the config with the split's name behind it, so that the two
    directions of a method do not share a folder.

    Args:
        args: with ``config_file``, ``opts`` and ``seen``; without ``seen``, nothing is changed.

    Raises:
        UserError: the split is given twice.
    """
    if not args.seen:
        return args
    opts = [str(x) for x in args.opts or ()]
    if "PSIS.SEEN_CLASSES" in opts[::2]:
        raise UserError("--seen and PSIS.SEEN_CLASSES both name a split; give one of them.")
    cfg = get_cfg()
    add_psis_config(cfg)
    if config_file := find_config_file(args.config_file):
        merge_file(cfg, config_file)
    added = ["PSIS.SEEN_CLASSES", args.seen]
    if args.seen != cfg.PSIS.SEEN_CLASSES and "OUTPUT_DIR" not in opts[::2]:
        name = os.path.splitext(os.path.basename(args.seen))[0]
        added += ["OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_{name}"]
    return argparse.Namespace(**vars(args) | {"opts": added + opts})


def build_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line.

    Args:
        args: ``config_file`` (a file or a name), ``opts``, ``num_gpus`` and the flags of
            :func:`add_data_arguments`.

    Raises:
        UserError: for a config file, key or value that cannot be used or has no effect, and for
            inconsistent data.
    """
    cfg = get_cfg()
    add_psis_config(cfg)
    if config_file := find_config_file(args.config_file):
        merge_file(cfg, config_file)
    batch, options = cfg.SOLVER.IMS_PER_BATCH, args.opts or []
    merge_options(cfg, options)
    check_config(cfg)
    check_part_options(cfg)
    _check_output_dir(cfg.OUTPUT_DIR)
    _use_data_files(cfg, args)
    merge_options(cfg, options)  # what is said in words counts more than what the data says
    if scaled := scale_to_batch(cfg, batch, options):
        _say_once(scaled)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if getattr(args, "resume", False):
        _skip_initial_weights(cfg)
    check_classes(cfg)
    check_mask_file(cfg)
    no_masks = not cfg.MODEL.MASK_ON and cfg.TEST.MASKS == "model"
    if no_masks and cfg.TEST.BOXES != "detected":
        raise UserError(
            f"TEST.BOXES {cfg.TEST.BOXES} measures masks in given boxes, but MODEL.MASK_ON False "
            "predicts none; set TEST.BOXES to detected."
        )
    check_model(cfg)
    cfg.freeze()
    return cfg


def _check_output_dir(folder: str) -> None:
    """Turn down an OUTPUT_DIR that cannot be made or written to; nothing is made yet."""
    if "://" in folder:
        return
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise UserError(
            f"OUTPUT_DIR is {folder}, but {there} is not a folder; choose another OUTPUT_DIR."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"OUTPUT_DIR is {folder}, but {there} cannot be written to; choose another OUTPUT_DIR, "
            "or change the folder's permissions."
        )


def register_data_files(cfg: CfgNode) -> None:
    """Register the data sets of ``PSIS.DATA_FILES``: what a run's ``config.yaml`` needs to be used.

    Raises:
        UserError: a name is taken by other files.
    """
    for name, json_file, images in cfg.PSIS.DATA_FILES:
        register_coco_json(name, json_file, images)


@functools.cache
def _say_once(sentence: str) -> None:
    if comm.is_main_process():
        print(sentence)


def _skip_initial_weights(cfg: CfgNode) -> None:
    """Name the checkpoint that a run resumes from, so that no builder looks for other weights."""
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not cfg.MODEL.WEIGHTS and os.path.isfile(last):
        with open(last, encoding="utf-8", errors="replace") as file:
            cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, file.read().strip())


def _use_data_files(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Point the config at the files of ``--train-json`` and so on, in place.

    ``PSIS.DATA_FILES`` keeps them: the ``config.yaml`` of a run registers them again.
    """
    register_data_files(cfg)
    files = {name: paths for name, *paths in cfg.PSIS.DATA_FILES}
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        json_file = getattr(args, f"{split}_json", None)
        images = getattr(args, f"{split}_images", None)
        if bool(json_file) != bool(images):
            raise UserError(f"--{split}-json and --{split}-images belong together; give both.")
        if json_file:
            name = f"{split}:{json_file}"
            register_coco_json(name, json_file, images)
            files[name] = [_absolute(json_file), _absolute(images)]
            cfg.DATASETS[key] = (name,)
            if split == "train":
                cfg.PSIS.SEEN_CLASSES = "auto"
    if getattr(args, "train_json", None) or getattr(args, "val_json", None):
        num_classes = len(get_model_class_names(cfg))
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    if getattr(args, "train_json", None) and not getattr(args, "val_json", None):
        logger.warning("No --val-json: nothing will be evaluated.")
        cfg.DATASETS.TEST = ()
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    cfg.PSIS.DATA_FILES = [[name, *paths] for name, paths in files.items() if name in used]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def prepare_data(cfg: CfgNode, training: bool = True) -> None:
    """Make what a config needs and is not there: data sets, GrabCut masks, what its head prepares.

    All data is read and checked first. Called once before several processes start, which would
    otherwise each make them.

    Args:
        cfg: the config.
        training: whether the run will train.
    """
    check_data(cfg, training)
    if training:
        prepare_mask_head(cfg)


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Output folder, loggers, seeds: Detectron2's set-up, and a logger of our own.

    What ``TEST.EXPECTED_RESULTS`` says of other data, and of boxes that ``TEST.BOXES`` leaves out,
    goes from ``cfg``.

    Raises:
        UserError: ``OUTPUT_DIR`` cannot be written to.
    """
    # The expectations are those of the file; Detectron2 logs its text.
    args = argparse.Namespace(**vars(args) | {"config_file": find_config_file(args.config_file)})
    told = settle_expectations(cfg, args)
    if comm.is_main_process() and "://" not in cfg.OUTPUT_DIR:
        try:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
                pass
        except OSError as error:
            raise UserError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written to ({error.strerror or error}); "
                "choose another OUTPUT_DIR."
            ) from error
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="psis_d2")
    write_kept()
    for sentence in told:
        logger.warning(sentence)
