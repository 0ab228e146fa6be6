"""The command line, end to end on tiny data: train, evaluate, resume, and complain well."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine import Trainer

import pytest
import torch
import train_net
from detectron2.engine import HookBase

from tiny_data import command_line, write_tiny_data

ROOT = Path(__file__).parents[2]
# Every command line of a test registers its data by the same names.
pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def run(line: list[str]):
    return train_net.main(train_net.parse_arguments(line))


def refuses(line: list[str], capsys) -> str:
    """The sentence with which a command line is turned down."""
    with pytest.raises(SystemExit) as stop:
        run(line)
    assert stop.value.code == 2
    sentences = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(sentences) == 1
    return sentences[0]


def test_train_evaluate_reload(data, tmp_path):
    run(command_line(data, tmp_path, "TEST.BOXES", "both"))
    trained = json.loads((tmp_path / "results.json").read_text())
    assert {"segm_seen", "segm_unseen", "bbox_all", "gtbox_seen"} <= trained.keys()
    weights = tmp_path / "model_final.pth"
    again = command_line(data, tmp_path / "again", "TEST.BOXES", "both", "MODEL.WEIGHTS", weights)
    run(["--eval-only", *again])
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == trained
    stored = torch.load(weights, weights_only=True)["psis_d2"]
    assert (stored["class_names"], stored["seen_ids"]) == (["box", "cup", "hat"], [0])


@pytest.mark.parametrize(("boxes", "other"), [("gt", "bbox_all"), ("detected", "gtbox_seen")])
def test_results_are_expected_of_the_boxes_that_are_measured(boxes, other, data, tmp_path):
    task, metric = ("gtbox_seen", "IoU") if boxes == "gt" else ("bbox_all", "AP")
    line = command_line(data, tmp_path, "TEST.BOXES", boxes)
    results = run(line) or json.loads((tmp_path / "results.json").read_text())
    right = [[task, metric, results[task][metric], 0.1], [other, "AP", 50.0, 0.1]]
    wrong = [[task, metric, results[task][metric] + 1, 0.1]]
    line += ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), "TEST.EXPECTED_RESULTS"]
    assert run(["--eval-only", *line, str(right)])[task][metric] == results[task][metric]
    log = (tmp_path / "log.txt").read_text()
    assert f"TEST.BOXES {boxes} does not measure {other}" in log
    with pytest.raises(SystemExit) as stop:
        run(["--eval-only", *line, str(wrong)])
    assert stop.value.code == 1


def test_shape_priors_are_made_by_the_way(data, tmp_path):
    """Training makes its priors, evaluation needs no file of them; shrunk boxes are measured."""
    options = ["TEST.BOXES", "gt", "TEST.BOX_SHRINK", 0.75, "PSIS.SHAPEMASK.NUM_PRIORS", 3]
    train_net.invoke_main(command_line(data, tmp_path, *options, config="shapemask_shapes"))
    results = json.loads((tmp_path / "results.json").read_text())
    tasks = {"gtbox_seen", "gtbox_overlapped_seen"}
    tasks |= {f"shrunk_{task}" for task in tasks}
    assert {name for name in results if name.endswith("_seen")} == tasks
    (tmp_path / "shape_priors.npz").unlink()
    weights = ["MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    again = command_line(data, tmp_path / "b", *options, *weights, config="shapemask_shapes")
    run(["--eval-only", *again])
    assert json.loads((tmp_path / "b" / "results.json").read_text()) == results


def test_masks_without_regions(data, tmp_path):
    """The other meta-architecture on the same road: detected, given and shrunk boxes."""
    options = ["TEST.BOXES", "both", "TEST.BOX_SHRINK", 0.75, "PSIS.CONDINST.BRANCH_DIM", 16]
    options += ["PSIS.FCOS.SCORE_THRESH_TEST", 0.0]  # two iterations make no confident detector
    config = "boxinst_teacher_student_shapes"
    run(command_line(data, tmp_path, *options, config=config))
    results = json.loads((tmp_path / "results.json").read_text())
    tasks = {f"{name}_seen" for name in ("segm", "bbox", "gtbox")}
    assert tasks | {f"shrunk_{name}" for name in tasks} <= results.keys()
    logged = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert {"loss_student", "masks/box_fill", "masks/positive_pairs"} <= logged.keys()


class RecordLosses(HookBase):
    """Keeps every iteration's total loss; interrupts the run before iteration `stop`."""

    def __init__(self, stop=None):
        self.losses, self.stop = {}, stop

    def before_step(self):
        if self.trainer.iter == self.stop:
            raise KeyboardInterrupt

    def after_step(self):
        self.losses[self.trainer.iter] = self.trainer.storage.history("total_loss").latest()


def record(cfg, resume=False, stop=None) -> dict[int, float]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    hook = RecordLosses(stop)
    trainer.register_hooks([hook])
    if stop is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return hook.losses


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_training_equals_uninterrupted(data, tmp_path, workers):
    from psis_d2.engine.setup import build_config

    def config(output):
        line = command_line(data, tmp_path / output, "SOLVER.MAX_ITER", 6)
        line += ["SOLVER.STEPS", "[4]", "SOLVER.WARMUP_ITERS", "4", "SOLVER.CHECKPOINT_PERIOD", "3"]
        line += ["DATALOADER.NUM_WORKERS", str(workers), "SEED", "3", "DATASETS.TEST", "[]"]
        return build_config(train_net.parse_arguments(line))

    torch.manual_seed(0)
    whole = record(config("whole"))
    torch.manual_seed(0)
    first = record(config("parts"), stop=3)
    torch.manual_seed(99)  # what the first part left behind must not matter
    second = record(config("parts"), resume=True)
    assert sorted(first) == [0, 1, 2]
    assert sorted(second) == [3, 4, 5]
    assert {**first, **second} == whole
    assert len(set(whole.values())) == 6


def test_detector_alone_trains_and_measures_boxes(data, tmp_path):
    opts = ("MODEL.MASK_ON", False, "TEST.BOXES", "detected", "PSIS.FCOS.TOWER_DIM", 16)
    run(command_line(data, tmp_path, *opts, config="fcos_agnostic_shapes"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"bbox_seen", "bbox_unseen", "bbox_all"}


def test_detector_alone_has_no_masks_in_given_boxes(data, tmp_path, capsys):
    opts = ("MODEL.MASK_ON", False, "TEST.BOXES", "both")
    line = command_line(data, tmp_path, *opts, config="fcos_agnostic_shapes")
    assert "set TEST.BOXES to detected" in refuses(line, capsys)


def test_other_number_of_classes_is_refused(data, tmp_path, capsys):
    run(command_line(data, tmp_path / "a", "DATASETS.TEST", "[]"))
    content = json.loads(Path(data["json"]).read_text())
    content["categories"].append({"id": 4, "name": "jar"})
    other = {"json": str(tmp_path / "other.json"), "images": data["images"]}
    Path(other["json"]).write_text(json.dumps(content))
    line = command_line(other, tmp_path / "b", "MODEL.WEIGHTS", tmp_path / "a" / "model_final.pth")
    sentence = refuses(["--eval-only", *line], capsys)
    assert "it has 3 classes, the data set 4" in sentence
    assert "PSIS.SKIP_MISMATCHED_WEIGHTS" in sentence


def test_a_foreign_checkpoint_of_another_size_is_refused(data, tmp_path, capsys):
    run(command_line(data, tmp_path / "a", "DATASETS.TEST", "[]"))
    weights = torch.load(tmp_path / "a" / "model_final.pth", weights_only=True)["model"]
    name = "roi_heads.box_predictor.cls_score.weight"
    weights[name] = torch.zeros(81, weights[name].shape[1])
    torch.save(weights, tmp_path / "foreign.pth")
    line = command_line(data, tmp_path / "b", "MODEL.WEIGHTS", tmp_path / "foreign.pth")
    assert f"{name} is (81, 32) there and (4, 32) here" in refuses(["--eval-only", *line], capsys)
    # ... but it may be a start, if asked for
    run([*line, "DATASETS.TEST", "[]", "PSIS.SKIP_MISMATCHED_WEIGHTS", "True"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d | {"json": "nowhere.json"}, "nowhere.json"),
        (lambda d: d | {"images": "nowhere"}, "nowhere"),
    ],
    ids=["json", "images"],
)
def test_missing_files_are_named(data, tmp_path, capsys, change, words):
    assert words in refuses(command_line(change(data), tmp_path), capsys)


@pytest.mark.parametrize("field", ["category_id", "image_id"])
def test_unknown_ids_are_named(data, tmp_path, capsys, field):
    content = json.loads(Path(data["json"]).read_text())
    content["annotations"][1][field] = 77
    bad = data | {"json": str(tmp_path / "bad.json")}
    Path(bad["json"]).write_text(json.dumps(content))
    assert "77" in refuses(command_line(bad, tmp_path / "out"), capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(data, tmp_path, capsys, workers):
    folder = tmp_path / "images"
    shutil.copytree(data["images"], folder)
    for image in folder.iterdir():
        image.write_bytes(b"no picture")
    line = command_line(data | {"images": str(folder)}, tmp_path / "out")
    sentence = refuses([*line, "DATALOADER.NUM_WORKERS", str(workers)], capsys)
    assert str(folder) in sentence
    assert "Traceback" not in sentence


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("PSIS.SEEN_CLASSES", "voc"), "voc"),
        (("PSIS.SEEN_CLASSES", "nowhere.txt"), "nowhere.txt"),
        (("TEST.BOXES", "some"), "choose one of detected, gt, both"),
        (("PSIS.NO_SUCH_KEY", "1"), "PSIS.NO_SUCH_KEY"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "7"), "has 3 classes, the model 7"),
        (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH is 0"),
    ],
)
def test_bad_options(data, tmp_path, capsys, opts, words):
    assert words in refuses(command_line(data, tmp_path, *opts), capsys)


def test_unknown_name_in_a_class_file(data, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("box\ncap\n")
    sentence = refuses(command_line(data, tmp_path / "o", "PSIS.SEEN_CLASSES", names), capsys)
    assert "cap" in sentence
    assert "cup" in sentence  # the near miss


def test_eval_only_needs_weights(data, tmp_path, capsys):
    sentence = refuses(["--eval-only", *command_line(data, tmp_path)], capsys)
    assert "MODEL.WEIGHTS" in sentence


def test_missing_weights(data, tmp_path, capsys):
    line = command_line(data, tmp_path, "MODEL.WEIGHTS", "none.pth")
    assert "none.pth does not exist" in refuses(line, capsys)


def test_json_without_images_folder_flag(data, tmp_path, capsys):
    line = command_line(data, tmp_path)
    line.remove("--train-images")
    line.remove(data["images"])
    assert "--train-json and --train-images belong together" in refuses(line, capsys)


def test_command_line_in_a_process_of_its_own(tmp_path):
    """More GPUs than there are: a sentence, a status, no traceback."""
    done = subprocess.run(
        [sys.executable, "train_net.py", "--num-gpus", "99"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "--num-gpus 99 asks for more than" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_from_the_command_line(data, tmp_path):
    line = command_line(data, tmp_path, "SOLVER.MAX_ITER", 3)
    done = subprocess.run(
        [sys.executable, "train_net.py", "--num-cpu-processes", "2", *line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "segm_all" in json.loads((tmp_path / "results.json").read_text())
