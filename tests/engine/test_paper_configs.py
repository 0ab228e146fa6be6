"""The configs of the papers, two iterations of each on a few images: train and evaluate.

Heads, losses, norms and solver are the config's. Images, proposals and detections are few and
small, and no weights are pretrained. The backbone is ResNet-18; a config of ResNet-101 that is
another's but for that has its own.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.data.datasets import partial_shapes

import pytest
from forked_commands import ForkedCommands
from paper_data import write_bdd100k, write_coco, write_visual_genome, write_voc12
from registry_lines import merged, model_of, of_file, parsed, trainings, word_vectors

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.yaml") if not path.stem.startswith("Base-")
)
OTHER_DATA = re.compile("bdd100k|voc12|vg3k")
FAST = "shapeprop_R50"
SMALL = """INPUT.MIN_SIZE_TRAIN [96] INPUT.MIN_SIZE_TRAIN_SAMPLING choice
    INPUT.MAX_SIZE_TRAIN 160 INPUT.MIN_SIZE_TEST 96
    INPUT.MAX_SIZE_TEST 160 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS []
    SOLVER.BASE_LR 0.001 DATALOADER.NUM_WORKERS 0 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8
    MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.PRE_NMS_TOPK_TEST 50
    MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 20
    TEST.DETECTIONS_PER_IMAGE 3 TEST.PICTURES 0
    MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0"""  # nothing pretrained to freeze
SHALLOW = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
DEEP = [name for name in CONFIGS if "R101" in name and name.replace("R101", "R50") in CONFIGS]


@dataclass
class Data:
    """Where runs find data.

    Attributes:
        commands: with the folder of data sets.
        stages: folder for the models that others begin with.
        has_voc: whether VOC 2012 is there.
        classes_of_vg: categories of Visual Genome.
        everywhere: options of every run.
    """

    commands: ForkedCommands
    stages: Path
    has_voc: bool = False
    classes_of_vg: int = 0
    everywhere: tuple[str, ...] = ()

    def options(self, name: str) -> list[str]:
        """What a config needs for so few images of this data."""
        options = [*self.everywhere, *([] if name in DEEP else SHALLOW)]
        if of_file(name).PSIS.MLP_BRANCH:  # 157 million weights for regions of 14 x 14 cells
            options += ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "6"]
        if name.startswith("shapemask"):
            options += ["PSIS.SHAPEMASK.NUM_PRIORS", "1"]
        if self.everywhere:
            split = "all" if of_file(name).PSIS.SEEN_CLASSES == "all" else "shapes"
            options += ["DATASETS.TRAIN", "['partial_shapes_train']", "PSIS.SEEN_CLASSES", split]
            if name == "cpmask_fewshot_base_R50":
                options += ["PSIS.TRAIN_CLASSES", split]
        elif "fewshot" in name:  # the draw is tested in tests/data/test_fewshot.py
            options += ["DATASETS.TRAIN", "['coco_2017_train']"]
        if "vg3k" in name:
            options += ["MODEL.ROI_HEADS.NUM_CLASSES", str(self.classes_of_vg)]
        if "voc12" in name and not self.has_voc:
            pytest.skip("no sample of VOC 2012 beside COCO's")
        return options


@pytest.fixture(scope="module")
def some_of_coco(coco_subset, tmp_path_factory) -> Iterator[Data]:
    """A few images of COCO."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(coco_subset, folder)
    with ForkedCommands(folder) as commands:
        yield Data(commands, folder / "stages")


@pytest.fixture(scope="module")
def some_of_all(coco_subset, tmp_path_factory) -> Iterator[Data]:
    """A few images of each data set."""
    folder = tmp_path_factory.mktemp("datasets")
    write_coco(coco_subset, folder)
    write_bdd100k(coco_subset, folder)
    sample = coco_subset / "voc2012" / "VOCdevkit" / "VOC2012"
    if has_voc := sample.is_dir():
        write_voc12(sample, folder)
    classes_of_vg = write_visual_genome(coco_subset, folder)
    with ForkedCommands(folder) as commands:
        yield Data(commands, folder / "stages", has_voc, classes_of_vg)


@pytest.fixture(scope="module")
def some_partial_shapes(tmp_path_factory) -> Iterator[Data]:
    """A few images of PartialShapes."""
    folder = tmp_path_factory.mktemp("shapes")
    partial_shapes.generate(str(folder / "partial_shapes"), 8, 2, progress=False)
    options = ["DATASETS.TEST", "['partial_shapes_val']", "MODEL.ROI_HEADS.NUM_CLASSES", "20"]
    with ForkedCommands(folder) as commands:
        yield Data(commands, folder / "stages", everywhere=tuple(options))


def test_a_config_trains_and_evaluates_on_coco(some_of_coco, tmp_path):
    words = _train_and_evaluate(FAST, some_of_coco, tmp_path)
    trained = _results(tmp_path)
    words = [word if word else str(tmp_path / "model_final.pth") for word in words]
    some_of_coco.commands.run([*words[:3], "--eval-only", *words[3:]], tmp_path)
    assert _results(tmp_path) == trained


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_and_evaluates_on_its_data(name, some_of_all, tmp_path):
    _train_and_evaluate(name, some_of_all, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if not OTHER_DATA.search(name)])
def test_trains_and_evaluates_on_partial_shapes(name, some_partial_shapes, tmp_path):
    _train_and_evaluate(name, some_partial_shapes, tmp_path)


@pytest.mark.slow
def test_rows_whose_model_no_config_has_train_and_evaluate(some_of_all, tmp_path):
    """Overrides of the registry; a config's own model is tested above."""
    known = {model_of(of_file(name)) for name in CONFIGS}
    word_vectors(tmp_path)
    count = 0
    for line in filter(lambda line: line.trains, trainings()):
        args = parsed(line)
        cfg = merged(args)
        if model_of(cfg) in known:
            continue
        known.add(model_of(cfg))
        pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        own = {k: v for k, v in pairs.items() if not k.startswith(("SOLVER.", "INPUT.", "OUTPUT"))}
        own = {k: v for k, v in own.items() if k != "MODEL.WEIGHTS" and "fewshot" not in str(v)}
        words = [*SHALLOW, *(word for pair in own.items() for word in pair)]
        _train_and_evaluate(args.config_file, some_of_all, tmp_path, words)
        count += 1
    assert count > 20


def _train(name: str, data: Data, folder: Path, options=()) -> list[str]:
    """Train in a folder, and before it the model that it begins with; returns the command line."""
    before = Path(of_file(name).MODEL.WEIGHTS)
    weights = ""
    if before.parts[:1] == ("output",):
        stage = data.stages / before.parts[1]
        if not (stage / before.name).exists():
            stage.mkdir(parents=True)
            _train(before.parts[1], data, stage)
        weights = str(stage / before.name)
    words = ["train", "--config-file", name, "--num-gpus", "0", "MODEL.WEIGHTS", weights]
    words += [*SMALL.split(), *data.options(name), "OUTPUT_DIR", str(folder), *options]
    data.commands.run(words, folder)
    return words


def _train_and_evaluate(name: str, data: Data, folder: Path, options=()) -> list[str]:
    words = _train(name, data, folder, options)
    cfg, results = of_file(name), _results(folder)
    groups = ["all"] if cfg.PSIS.SEEN_CLASSES == "all" else ["seen", "unseen", "all"]
    if cfg.PSIS.SEEN_CLASSES == "mapped" and cfg.DATASETS.TEST[0] != "vg_val":
        groups.remove("unseen")  # COCO's own categories are the seen ones
    assert {f"bbox_{group}" for group in groups} <= results.keys()
    # A detector that finds nothing does not show whether it draws masks.
    assert not cfg.MODEL.MASK_ON or f"segm_{groups[0]}" in results
    if name != FAST:
        (folder / "model_final.pth").unlink()  # 100 to 700 MB of each config
        (folder / "results.json").unlink()
    return words


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())
