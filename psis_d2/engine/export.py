"""A trained teacher-student model without its teacher."""

import os

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.engine.trainer import Trainer, build_checkpointer
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager


def export_student(cfg: CfgNode, output: str) -> int:
    """Write a checkpoint of the model without its teacher, and its config.

    Args:
        cfg: the training's config; ``MODEL.WEIGHTS`` is its checkpoint.
        output: the file to write, ending in ``.pth``; the config's ends in ``.yaml``.

    Returns:
        How many numbers were left out.

    Raises:
        UserError: there is no checkpoint or no teacher in it, or a file cannot be written.
    """
    stem, suffix = os.path.splitext(output)
    if suffix != ".pth":
        raise UserError(f"--output is {output}; give a name that ends in .pth.")
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError("There is nothing to export; add MODEL.WEIGHTS FILE.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.PSIS.TEACHER_STUDENT.STUDENT_ONLY = True
    cfg.MODEL.WEIGHTS = output
    student = Trainer.build_model(cfg)
    build_checkpointer(cfg, student).load(weights)  # which says what is wrong with a file
    with PathManager.open(weights, "rb") as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
    kept = student.state_dict().keys()
    if lacking := kept - content["model"].keys():
        raise UserError(
            f"The checkpoint {weights} has no weights for {min(lacking)}; give the one that "
            "belongs to this config."
        )
    left_out = content["model"].keys() - kept
    if not left_out:
        raise UserError(f"The checkpoint {weights} has no teacher; there is nothing to leave out.")
    # Not by Checkpointer.save: a training that is resumed in that folder would begin here.
    exported = {"model": {name: content["model"][name] for name in kept}}
    exported |= {key: content[key] for key in ("psis_d2",) if key in content}
    try:
        with written_at_once(f"{stem}.yaml") as file:
            file.write(cfg.dump())
        torch.save(exported, f"{output}.partial")
        os.replace(f"{output}.partial", output)
    except OSError as error:
        raise UserError(
            f"Cannot write {output} ({error.strerror or error}); choose another --output."
        ) from error
    return sum(content["model"][name].numel() for name in left_out)
