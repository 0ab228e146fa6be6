"""The command lines of the papers' rows as configs."""

import functools
from argparse import ArgumentParser, Namespace
from pathlib import Path

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.cli import train as train_command
from psis_d2.config import add_psis_config, psis_keys
from psis_d2.config_checks import value_of
from psis_d2.config_files import merge_file, merge_options
from psis_d2.data.splits import NAMED_SPLITS
from psis_d2.engine.setup import with_seen
from psis_d2.experiments import all_experiments
from psis_d2.experiments.commands import Line, command_lines
from psis_d2.model_zoo import get_config_file

from detectron2.config import CfgNode, get_cfg


def parsed(line: Line) -> Namespace:
    """The arguments of a training's command line, as the command has them."""
    parser = ArgumentParser()
    train_command.add_arguments(parser)
    args = parser.parse_args(list(line.words[1:]))
    args.num_gpus = 0
    return with_seen(args)


def merged(args: Namespace) -> CfgNode:
    """The config of a command line, without its checks."""
    cfg = of_file(args.config_file).clone()
    merge_options(cfg, args.opts)
    return cfg


@functools.cache
def of_file(name: str) -> CfgNode:
    """The config of a file or name, not to be changed."""
    cfg = get_cfg()
    add_psis_config(cfg)
    merge_file(cfg, get_config_file(name))
    return cfg


def trainings(smoke: bool = False) -> dict[Line, str]:
    """Every training and measurement of the registry once, with the id of an experiment."""
    lines = {}
    for x in all_experiments():
        if x.steps and (x.quick or not smoke):
            for line in command_lines([x], smoke=smoke):
                if line.words[0] == "train":
                    lines.setdefault(line, x.id)
    return lines


def model_of(cfg: CfgNode) -> str:
    """All that the building of a model reads; ResNet-101 reads the same as ResNet-50."""
    model = cfg.MODEL.clone()
    model.WEIGHTS, model.RESNETS.DEPTH = "", 50
    ours = [(k, value_of(cfg, k)) for k, known in psis_keys().items() if known.of_model]
    return f"{model}{ours}"


def word_vectors(folder: Path) -> None:
    """A file like GloVe's, of three numbers a word of COCO's categories."""
    words = {word for n in ("voc", "nonvoc") for c in NAMED_SPLITS[n] for word in c.split()}
    lines = [f"{word} 0.1 0.2 0.3\n" for word in sorted(words)]
    (folder / "glove.6B.300d.txt").write_text("".join(lines))
