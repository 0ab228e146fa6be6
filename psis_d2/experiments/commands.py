"""From an experiment to its command lines, on its own data or, for a trial, on PartialShapes."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psis_d2.errors import UserError
from psis_d2.experiments.registry import Experiment, Step
from psis_d2.model_zoo.configs import get_config_file

import yaml

OUTPUT = "output/experiments"
SMOKE = "output/smoke"
# A trial shows that commands, data and models fit together; nothing is learned in so few steps.
# Rows whose results are drawn have quick_opts with more of them.
SMOKE_OPTIONS = {
    "SOLVER.MAX_ITER": 10,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_ITERS": 5,
    "TEST.EXPECTED_RESULTS": [],
    "TEST.PICTURES": 0,
}
# What is about other data or a longer schedule has no meaning in a trial.
_NOT_IN_A_TRIAL = ("SOLVER.", "INPUT.", "DATASETS.", "MODEL.WEIGHTS", "MODEL.RESNETS.")
_OTHERS = {"voc": "nonvoc", "nonvoc": "voc", "shapes": "shapes-swapped", "shapes-swapped": "shapes"}
_SPLIT_KEYS = ("PSIS.SEEN_CLASSES", "PSIS.TRAIN_CLASSES")


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        words: what stands behind ``psis-d2``.
        output: folder that it writes to; "" if it has none of its own.
        done: files that are there when it has ended well.
        trains: whether ``--resume`` goes on with it.
    """

    words: tuple[str, ...]
    output: str
    done: tuple[str, ...]
    trains: bool = False

    def __str__(self) -> str:
        return f"psis-d2 {shlex.join(self.words)}"


def command_lines(
    experiments: Iterable[Experiment], *, smoke: bool = False, num_gpus: int | None = None
) -> list[Line]:
    """The command lines of experiments in order, each one once.

    Args:
        experiments: those to run.
        smoke: their likenesses on PartialShapes, for a few iterations.
        num_gpus: ``--num-gpus`` of every training; None leaves it out.

    Raises:
        UserError: an experiment cannot be run here.
    """
    lines: dict[Line, None] = {}
    for experiment in experiments:
        lines.update(dict.fromkeys(_lines(experiment, smoke, num_gpus)))
    return list(lines)


def results_folder(experiment: Experiment, smoke: bool = False) -> str:
    """Where the last training or measurement of an experiment leaves ``results.json``."""
    lines = [line for line in _lines(experiment, smoke, None) if line.words[0] == "train"]
    return lines[-1].output


def _lines(experiment: Experiment, smoke: bool, num_gpus: int | None) -> list[Line]:
    if experiment.needs:
        raise UserError(f"Experiment {experiment.id} cannot be run here: {experiment.needs}.")
    if smoke and not experiment.quick:
        raise UserError(
            f"Experiment {experiment.id} has no likeness on PartialShapes; choose another one for "
            "--smoke."
        )
    lines: list[Line] = []
    weights = config = ""
    gpus = [] if num_gpus is None else ["--num-gpus", str(num_gpus)]
    steps = experiment.steps
    trainings = [i for i, s in enumerate(steps) if not (s.command or s.evaluate)]
    for place, step in enumerate(steps):
        if step.config:
            config = f"quick/{step.quick or experiment.quick}" if smoke else step.config
        if step.command:
            lines.append(_command(experiment, step, weights, config, smoke, gpus))
            continue
        opts = smoke_options(step) if smoke else dict(step.opts)
        if step.shared:
            table = "/".join(experiment.owner.split("/")[:2])
            folder = f"{table}/{step.shared}/{experiment.split}"
        elif place == trainings[-1] or step.evaluate:
            folder = f"{experiment.id}/measured" if step.evaluate else experiment.owner
        else:
            folder = f"{experiment.owner}/stage{place + 1}"
        words, output = _split_words(experiment, step, config, opts, folder, smoke)
        if weights:
            opts["MODEL.WEIGHTS"] = weights
        if smoke:
            opts = {**SMOKE_OPTIONS, **opts}
        words = ["train", "--config-file", config, *words, *gpus]
        words += ["--eval-only"] * step.evaluate
        words += _pairs(opts)
        if not step.evaluate:
            weights = f"{output}/model_final.pth"
        done = [f"{output}/results.json", *([] if step.evaluate else [weights])]
        lines.append(Line(tuple(words), output, tuple(done), trains=not step.evaluate))
    return lines


def _split_words(
    experiment: Experiment, step: Step, config: str, opts: dict, folder: str, smoke: bool
) -> tuple[list[str], str]:
    """The flag of a split, and the folder; ``OUTPUT_DIR`` joins `opts` where it has to be said."""
    split = smoke_split(experiment.split) if smoke else experiment.split
    if not step.split or config_value(config, "PSIS.SEEN_CLASSES") == split:
        split = ""
    words = ["--seen", split] if split else []
    if not opts and not smoke and not step.evaluate:
        return words, f"output/{config}" + (f"_{split}" if split else "")
    output = f"{SMOKE if smoke else OUTPUT}/{folder}"
    opts["OUTPUT_DIR"] = output
    return words, output


def _pairs(opts: Mapping[str, Any]) -> list[str]:
    return [x for key, value in opts.items() for x in (key, str(value))]


def _command(
    experiment: Experiment, step: Step, weights: str, config: str, smoke: bool, gpus: list[str]
) -> Line:
    """A command that is no training, or one that trains by itself: then `step` has a config."""
    datasets = f"{SMOKE}/datasets" if smoke else os.environ.get("DETECTRON2_DATASETS", "datasets")
    output = f"{SMOKE if smoke else OUTPUT}/{experiment.id}"
    split = smoke_split(experiment.split) if smoke else experiment.split
    places = {
        "weights": weights,
        "trained": os.path.dirname(weights),
        "config": config,
        "output": output,
        "row": experiment.row,
        "split": split,
        "val_set": "partial_shapes_val" if smoke else "coco_2017_val",
        "novel": _OTHERS.get(split, f"not:{split}"),
        "images": f"{datasets}/{'partial_shapes/val' if smoke else 'coco/val2017'}",
        "truth": f"{datasets}/{'partial_shapes' if smoke else 'coco'}/annotations/instances_"
        f"{'val' if smoke else 'val2017'}.json",
        "annotations": f"{datasets}/{'partial_shapes' if smoke else 'coco'}/annotations",
        "train_set": "partial_shapes_train" if smoke else "coco_2017_train",
        "datasets": datasets,
    }
    words = [word.format(**places) for word in step.command]
    if step.config:
        words[1:1] = gpus
        words += _pairs({**SMOKE_OPTIONS, **smoke_options(step)} if smoke else step.opts)
    return Line(tuple(words), output, (step.writes.format(**places),))


def smoke_options(step: Step) -> dict[str, Any]:
    """A step's overrides in a trial: those of models and methods."""
    kept = {k: v for k, v in step.opts.items() if not k.startswith(_NOT_IN_A_TRIAL)}
    for key in _SPLIT_KEYS:
        if key in kept:
            kept[key] = smoke_split(kept[key])
    if "TEST.GROUPS" in kept:
        kept["TEST.GROUPS"] = [[name, smoke_split(split)] for name, split in kept["TEST.GROUPS"]]
    return {**kept, **step.quick_opts}


def smoke_split(split: str) -> str:
    """The split of PartialShapes' 20 categories that is most like one of COCO's 80.

    ``random-20-0`` becomes ``random-5-0``, and of the 60 others of ``voc`` a sixth is as many.
    """
    if split.startswith("not:"):
        return f"not:{smoke_split(split.removeprefix('not:'))}"
    if found := re.fullmatch(r"(?:random|maskx)-(\d+)-(\d+)", split):
        return f"random-{int(found[1]) // 4}-{found[2]}"
    if found := re.fullmatch(r"voc\+(\d+)-(\d+)", split):
        return f"shapes+{max(1, int(found[1]) // 6)}-{found[2]}"
    return {"voc": "shapes", "nonvoc": "shapes-swapped"}.get(split, split)


@functools.cache
def config_value(config: str, key: str) -> Any:
    """The value of a key in a config file or in those that it is based on; None if none has it.

    Reads YAML alone, without Detectron2.
    """
    return _value(get_config_file(config), key)


def _value(path: str, key: str) -> Any:
    with open(path, encoding="utf-8") as file:
        tree = yaml.safe_load(file)
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if node is None and "_BASE_" in tree:
        return _value(os.path.join(os.path.dirname(path), tree["_BASE_"]), key)
    return node
