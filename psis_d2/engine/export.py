"""What a trained model predicts with, without what only its training needed."""

import os

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.engine.trainer import Trainer, build_checkpointer
from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.model_zoo.weights import read_weights, write_weights

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager


def has_teacher(cfg: CfgNode) -> bool:
    """Whether a config's model has a teacher that its predictions can do without."""
    if cfg.MODEL.META_ARCHITECTURE == "CondInst":
        node = cfg.PSIS.CONDINST
        return node.STUDENT and not cfg.PSIS.TEACHER_STUDENT.STUDENT_ONLY
    node = cfg.PSIS.TEACHER_STUDENT
    return cfg.MODEL.ROI_MASK_HEAD.NAME == "TeacherStudentMaskHead" and not node.STUDENT_ONLY


def strip_checkpoint(cfg: CfgNode) -> tuple[CfgNode, dict, int]:
    """What a trained model predicts with: no optimizer, no teacher.

    Args:
        cfg: the training's config; ``MODEL.WEIGHTS`` is its checkpoint.

    Returns:
        The config to use it with, the content of its file ("model" and "psis_d2"), and how many
        numbers of the model were left out.

    Raises:
        UserError: there is no checkpoint, or it belongs to another config.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError("There is nothing to export; add MODEL.WEIGHTS FILE.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if has_teacher(cfg):
        cfg.PSIS.TEACHER_STUDENT.STUDENT_ONLY = True
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model)
    checkpointer.load(weights)  # which says what is wrong with a file
    content = read_weights(PathManager.get_local_path(weights))
    kept = model.state_dict().keys()
    if lacking := kept - content["model"].keys():
        raise UserError(
            f"The checkpoint {weights} has no weights for {min(lacking)}; give the one that "
            "belongs to this config."
        )
    left_out = sum(x.numel() for name, x in content["model"].items() if name not in kept)
    entry = {"class_names": checkpointer.class_names, "seen_ids": checkpointer.seen_ids}
    entry |= content.get("psis_d2", {})
    entry.pop("digests", None)  # of what was there before
    stripped = {name: content["model"][name] for name in sorted(kept)}
    return cfg, {"model": stripped, "psis_d2": entry}, left_out


def export_student(cfg: CfgNode, output: str) -> int:
    """Write a checkpoint of a model without its teacher, and beside it the config to use it with.

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
    cfg, content, left_out = strip_checkpoint(cfg)
    if not left_out:
        raise UserError(f"The checkpoint {weights} has no teacher; there is nothing to leave out.")
    cfg.MODEL.WEIGHTS = output
    try:
        with written_at_once(f"{stem}.yaml") as file:
            file.write(cfg.dump())
    except OSError as error:
        raise UserError(
            f"Cannot write {output} ({error.strerror or error}); choose another --output."
        ) from error
    # Not by Checkpointer.save: a training that is resumed in that folder would begin here.
    write_weights(output, content)
    return left_out
