"""Train, draw the masks that are missing, train again with them (Progressive Mask R-CNN's rounds).

A round is a training and the masks that its model draws in the boxes without one. The first learns
from annotated masks, and from what ``PSIS.MISSING_MASKS`` says; every later one also from the masks
of the round before, as foreign masks: ``PSIS.MISSING_MASK_WEIGHT`` and so on say how. Every round
starts from ``MODEL.WEIGHTS``, so that no mistake is learned twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from psis_d2.data.catalog import coco_reader
from psis_d2.data.coco import match_annotations
from psis_d2.data.training_set import get_training_dicts
from psis_d2.engine import launch
from psis_d2.engine.setup import build_config, choose_gpus, prepare_data
from psis_d2.engine.train import train
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.files import written_at_once
from psis_d2.inference.autolabel import autolabel
from psis_d2.inference.predictor import Predictor

logger = logging.getLogger(__name__)

# What says how foreign masks are used has no effect in a first round without them.
_WITHOUT_MASKS = (
    *("PSIS.MISSING_MASK_WEIGHT", "1.0"),
    *("PSIS.MISSING_MASK_SCORE_POWER", "0.0"),
    *("PSIS.MISSING_MASK_MIN_SCORE", "0.0"),
)


def self_train(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    rounds: int = 2,
    num_gpus: int | None = None,
    num_cpu_processes: int = 1,
    train_json: str | None = None,
    train_images: str | None = None,
    val_json: str | None = None,
    val_images: str | None = None,
) -> str:
    """Train `rounds` times, each time with the masks of the round before.

    Round K is the folder ``OUTPUT_DIR/roundK``, that of a run of its own, with ``masks.json``, the
    training json with a mask for every box. A job that was stopped and is started again goes on in
    the round, the iteration (of its last checkpoint) and the image where it stopped.

    Args:
        config_file, opts, num_gpus, num_cpu_processes, train_json, train_images, val_json,
            val_images: see :func:`psis_d2.engine.train.train`.
        rounds: number of trainings, at least 1.

    Returns:
        The path of the last ``masks.json``.

    Raises:
        UserError: something in the arguments, the config or the data cannot be used.
        SystemExit: a process has ended with an error, which it has printed.
    """
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; give the number of trainings, at least 1.")
    num_gpus = choose_gpus(num_gpus)
    data = {"train_json": train_json, "train_images": train_images}
    data |= {"val_json": val_json, "val_images": val_images}

    def config(options):
        return build_config(
            argparse.Namespace(config_file=config_file, opts=options, num_gpus=num_gpus, **data)
        )

    options, cfg = [str(x) for x in opts], config([*map(str, opts), *_WITHOUT_MASKS])
    first = options if cfg.PSIS.MISSING_MASKS != "none" else [*options, *_WITHOUT_MASKS]
    folders = [os.path.join(cfg.OUTPUT_DIR, f"round{k}") for k in range(1, rounds + 1)]
    masks = [os.path.join(folder, "masks.json") for folder in folders]
    of_round = [[*first, "OUTPUT_DIR", folders[0]]]
    for before, folder in zip(masks, folders[1:], strict=False):
        of_round.append([*options, "PSIS.MISSING_MASKS", before, "OUTPUT_DIR", folder])
    for round_options in of_round:  # what the last round would refuse is refused now
        config(round_options)
    prepare_data(config(first))
    boxes = os.path.join(cfg.OUTPUT_DIR, "boxes.json")
    images = write_boxes(cfg, boxes)
    for folder, output, round_options in zip(folders, masks, of_round, strict=True):
        if os.path.isfile(output):
            continue
        if not _is_trained(folder, config(round_options)):
            processes = {"num_gpus": num_gpus, "num_cpu_processes": num_cpu_processes}
            train(config_file, round_options, resume=True, **processes, **data)
        launch(
            label_round,
            num_gpus=num_gpus if num_gpus > 1 else 0,
            num_cpu_processes=1 if num_gpus else num_cpu_processes,
            args=(folder, images, boxes, "cpu" if num_gpus == 0 else None),
        )
        _close_logs()
    return masks[-1]


def write_boxes(cfg, path: str) -> str:
    """Write the training json with the masks that training may see, and no others.

    Args:
        cfg: the config.
        path: of the json. If it is there, it has to be the same.

    Returns:
        The folder of the images.

    Raises:
        UserError: the training data is no single COCO-format json, or the file is another one.
    """
    (name, *others) = cfg.DATASETS.TRAIN
    reader = coco_reader(name)
    if others or reader is None:
        raise UserError(
            f"self-train labels one COCO-format json, and DATASETS.TRAIN is "
            f"{', '.join(cfg.DATASETS.TRAIN)}; give --train-json and --train-images."
        )
    dicts = get_training_dicts(cfg, add_missing=False)
    content = json.loads(Path(reader.json_file).read_text(encoding="utf-8-sig"))
    entries = match_annotations(dicts, content["annotations"])
    for record in dicts:
        for annotation in record["annotations"]:
            entry = entries[record["image_id"], annotation["id"]]
            entry["iscrowd"] = annotation["iscrowd"]
            if entry.get("id") is None:
                entry["id"] = annotation["id"]
            if "segmentation" not in annotation:
                entry.pop("segmentation", None)
    names = {x["image_id"]: os.path.relpath(x["file_name"], reader.image_root) for x in dicts}
    kept = [image for image in content["images"] if image["id"] in names]
    content["images"] = [image | {"file_name": names[image["id"]]} for image in kept]
    content["annotations"] = list(entries.values())
    text = json.dumps(content)
    if not os.path.isfile(path):
        with written_at_once(path) as file:
            file.write(text)
    elif Path(path).read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path} is of another self-train, with other data or other visible masks; choose "
            "another OUTPUT_DIR, or remove the folder to start anew."
        )
    return reader.image_root


def label_round(folder: str, images: str, boxes: str, device: str | None) -> None:
    """One process that draws the masks of a round, see :func:`autolabel`."""
    with exit_on_user_error():
        predictor = Predictor(os.path.join(folder, "model_final.pth"), device=device)
        report = autolabel(predictor, images, os.path.join(folder, "masks.json"), boxes=boxes)
        if report:
            print("\n".join([f"{folder}:", *report.lines()]))


def _is_trained(folder: str, cfg) -> bool:
    """Whether a round has its model and, if it is evaluated, its results."""
    wanted = ["model_final.pth"] + ["results.json"] * bool(cfg.DATASETS.TEST)
    return all(os.path.isfile(os.path.join(folder, name)) for name in wanted)


def _close_logs() -> None:
    """Let the next round write into its own log alone; each one sets up the loggers anew."""
    for name in ("detectron2", "fvcore", "psis_d2"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
