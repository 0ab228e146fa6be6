"""From experiments to command lines, and how these are run: by hand for one of each kind."""

import csv
import json
import subprocess
from pathlib import Path

from psis_d2.cli import main
from psis_d2.data.splits import NAMED_SPLITS
from psis_d2.errors import UserError
from psis_d2.experiments import Experiment, find_experiments, plot
from psis_d2.experiments import run as running
from psis_d2.experiments.commands import (
    SMOKE_OPTIONS,
    Line,
    command_lines,
    config_value,
    results_folder,
    smoke_split,
)
from psis_d2.experiments.run import StepFailed, run_lines

import pytest


def printed(name: str, **options) -> list[str]:
    return [str(line) for line in command_lines(find_experiments(name), **options)]


def test_a_plain_row_is_its_config_and_the_other_direction_its_flag():
    assert printed("shapeprop/1/shapeprop-R50", num_gpus=8) == [
        "psis-d2 train --config-file shapeprop_R50 --num-gpus 8",
        "psis-d2 train --config-file shapeprop_R50 --seen nonvoc --num-gpus 8",
    ]


def test_stages_share_the_detector_and_name_its_weights():
    detector, voc, nonvoc = printed("maskx/1a/randn")
    assert detector == "psis-d2 train --config-file fasterrcnn_R50"
    weights = "MODEL.WEIGHTS output/fasterrcnn_R50/model_final.pth"
    opts = (
        "PSIS.MLP_BRANCH False PSIS.MASKX.INPUT randn OUTPUT_DIR output/experiments/maskx/1a/randn"
    )
    assert voc == f"psis-d2 train --config-file maskx_stagewise_R50 {opts}/voc {weights}"
    assert nonvoc == (
        f"psis-d2 train --config-file maskx_stagewise_R50 --seen nonvoc {opts}/nonvoc {weights}"
    )


def test_a_row_of_another_table_is_run_in_its_folder():
    assert printed("maskx/1b/2-layer-leaky") == printed("maskx/1a/cls+box")
    assert printed("cpmask/2/oracle-maskx") == printed("maskx/2/oracle-R101")


def test_a_measurement_is_of_the_weights_before_it():
    train, measured = printed("shapemask/3/shapemask")
    assert train == "psis-d2 train --config-file shapemask_specific_R101"
    assert measured == (
        "psis-d2 train --config-file shapemask_specific_R101 --eval-only TEST.BOX_SHRINK 0.75 "
        "OUTPUT_DIR output/experiments/shapemask/3/shapemask/all/measured "
        "MODEL.WEIGHTS output/shapemask_specific_R101/model_final.pth"
    )


def test_few_shots_are_drawn_and_their_base_is_trained_once():
    ten, twenty = printed("cpmask/3/faster-10"), printed("cpmask/3/faster-20")
    assert ten[0] == "psis-d2 make-fewshot --dataset coco_2017_train --novel voc --shots 10"
    assert ten[1] == twenty[1] and "cpmask/3/base-faster/nonvoc" in ten[1]
    assert ten[2].endswith("cpmask/3/base-faster/nonvoc/model_final.pth")
    (draw, *_) = command_lines(find_experiments("cpmask/3/faster-10"))
    assert draw.done == ("datasets/coco/annotations/fewshot_voc_10_seed0.json",)


def test_a_figure_varies_a_share_or_the_split():
    whole, half, *_ = printed("shapemask/fig8/shapemask")
    assert whole == "psis-d2 train --config-file shapemask_R101"
    assert "PSIS.TRAIN_IMAGE_FRACTION 0.5 OUTPUT_DIR output/experiments/shapemask/fig8" in half
    lines = printed("maskx/fig3")
    assert sum("--seen maskx-" in line for line in lines) == 2 * 25
    assert set(printed("maskx/1a/agnostic")) <= set(lines)


def test_self_training_has_its_words():
    (line,) = printed("shapeprop/2/progressive", num_gpus=2)
    assert line == (
        "psis-d2 self-train --num-gpus 2 --rounds 2 --config-file maskrcnn_bdd100k_R50 "
        "OUTPUT_DIR output/experiments/shapeprop/2/progressive/all"
    )


def test_a_trial_is_on_shapes_and_short():
    detector, second = printed("maskx/1a/randn/nonvoc", smoke=True)
    assert "--config-file quick/agnostic_shapes " in detector and "MASK_ON False" in detector
    assert "--config-file quick/maskx_shapes --seen shapes-swapped" in second
    assert "PSIS.MASKX.INPUT randn" in second and "PSIS.TRAIN_ONLY mask_head" in second
    assert f"SOLVER.MAX_ITER {SMOKE_OPTIONS['SOLVER.MAX_ITER']}" in second
    (line,) = printed("teacher_student/1/opmask-R50/voc", smoke=True)
    assert "87960" not in line and "TEST.OVERLAP 0.3" in line  # no schedule, but the method's keys


@pytest.mark.parametrize(
    ("split", "small"),
    [
        ("voc", "shapes"),
        ("nonvoc", "shapes-swapped"),
        ("all", "all"),
        ("maskx-60-3", "random-15-3"),
        ("random-20-0", "random-5-0"),
        ("not:random-60-0", "not:random-15-0"),
        ("voc+30-0", "shapes+5-0"),
    ],
)
def test_splits_of_a_trial(split, small):
    assert smoke_split(split) == small


def test_what_cannot_be_run_says_why():
    with pytest.raises(UserError, match="shapemask/fig9/robotics/all cannot be run here: the ph"):
        printed("shapemask/fig9")
    with pytest.raises(UserError, match="has no likeness on PartialShapes"):
        printed("maskx/1a/glove", smoke=True)


def test_values_of_config_files_come_from_what_they_are_based_on():
    assert config_value("shapeprop_R101", "PSIS.SEEN_CLASSES") == "voc"
    assert config_value("cpmask_fewshot_R50", "PSIS.SEEN_CLASSES") == "nonvoc"
    assert config_value("shapeprop_R50", "MODEL.NOTHING") is None


# ---------------------------------------------------------------------------------- running


def line(name: str, *words: str) -> Line:
    done = (f"{name}/results.json", f"{name}/model_final.pth")
    return Line(("train", *words, "OUTPUT_DIR", name), name, done, trains=True)


@pytest.fixture
def started(tmp_path, monkeypatch) -> list[list[str]]:
    """The commands that were started; instead of a process, each leaves its files or fails."""
    monkeypatch.chdir(tmp_path)
    found = []

    def start(words, env):
        found.append(words[3:])
        if "fails" in words:
            return subprocess.CompletedProcess(words, 2)
        folder = Path(words[-1])
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "model_final.pth"):
            (folder / name).write_text("{}")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(running.subprocess, "run", start)
    return found


def test_what_is_done_is_skipped_and_what_was_stopped_goes_on(started, capsys):
    Path("b").mkdir()
    Path("b/last_checkpoint").write_text("model_0001.pth")
    run_lines([line("a"), line("b")])
    assert started == [["train", "OUTPUT_DIR", "a"], ["train", "--resume", "OUTPUT_DIR", "b"]]
    assert "[2/2] psis-d2 train OUTPUT_DIR b" in capsys.readouterr().out
    run_lines([line("a"), line("c"), line("b")])
    assert started[2:] == [["train", "OUTPUT_DIR", "c"]]
    Path("a/results.json").unlink()  # killed in its evaluation
    run_lines([line("a")])
    assert len(started) == 4


def test_a_step_that_fails_ends_the_experiment_with_its_status(started):
    with pytest.raises(StepFailed, match="Step 2 of 3 has ended with status 2 .psis-d2 train") as e:
        run_lines([line("a"), line("b", "fails"), line("c")])
    assert e.value.status == 2
    assert len(started) == 2


# ---------------------------------------------------------------------------------- the command


def test_the_command_lists_and_prints(capsys):
    assert main(["experiment", "list", "maskx/1a/randn"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "maskx/1a/randn/voc     transfer w/ randn",
        "maskx/1a/randn/nonvoc  transfer w/ randn",
    ]
    assert main(["experiment", "list", "--paper", "cpmask"]) == 0
    shown = capsys.readouterr().out
    assert "cpmask/4/htc/all" in shown and "(not here: a method that is not here)" in shown
    assert main(["experiment", "shapeprop/1/shapeprop-R50/voc", "--dry-run"]) == 0
    assert capsys.readouterr().out == "psis-d2 train --config-file shapeprop_R50\n"
    # Of a table, what can be run.
    assert main(["experiment", "cpmask/4", "--dry-run"]) == 0
    assert "cpmask_full_R101" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["maskx/1a/radn"], "There is no experiment 'maskx/1a/radn'; did you mean"),
        (["list", "--paper", "maskrcnn"], "There is no paper 'maskrcnn'; choose one of maskx"),
        ([], "No experiment is named"),
        (["shapemask/fig9", "--dry-run"], "cannot be run here: the photographs"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["experiment", *words])
    assert stop.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert sentence in told


def test_one_row_of_each_kind_can_be_tried(capsys):
    assert main(["experiment", "--smoke", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind in ("--eval-only", "make-fewshot", "self-train", "predict", "--seen shapes-swapped"):
        assert any(kind in line for line in lines), kind
    assert all("--num-gpus 0" in x for x in lines if x.startswith("psis-d2 train"))


# ---------------------------------------------------------------------------------- figures


def leave_result(x: Experiment, value: float | None) -> None:
    folder = Path(results_folder(x))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"segm_unseen": {"AP": value}}))


def test_a_curve_over_categories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("voc", 20.0), ("voc+30-0", 24.5)):
        leave_result(*find_experiments(f"teacher_student/fig8/maskrcnn/{name}"), value)
    leave_result(*find_experiments("teacher_student/fig8/opmask/voc"), None)
    plot.draw_plots(find_experiments("teacher_student/fig8"))
    assert "(22 runs are not done)" in capsys.readouterr().out
    folder = Path("output/experiments/teacher_student/fig8")
    results = "../1/maskrcnn-R50/voc/results.json"
    assert (folder / "runs.csv").read_text().splitlines()[:2] == [
        "series,split,x,results",
        f"Mask R-CNN,voc,,{results}",
    ]
    with open(folder / "figure.csv") as file:
        rows = [(row["series"], row["x"], row["value"]) for row in csv.DictReader(file)]
    assert [(s, float(x), float(y)) for s, x, y in rows] == [
        ("Mask R-CNN", 20, 20.0),
        ("Mask R-CNN", 50, 24.5),
    ]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_relative_increase_over_masks_of_a_category(tmp_path, monkeypatch, capsys):
    """Fig. 3 by hand: one object of each of voc's categories and 20 more persons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    leave_result(*find_experiments("maskx/fig3/agnostic/voc"), 16.0)
    leave_result(*find_experiments("maskx/fig3/transfer/voc"), 20.0)
    # Without a counterpart: left out.
    leave_result(*find_experiments("maskx/fig3/transfer/nonvoc"), 20.0)
    names = [*NAMED_SPLITS["voc"], *NAMED_SPLITS["nonvoc"]]
    numbers = [*range(20), *[names.index("person")] * 20]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": k + 1, "image_id": 1, "category_id": i + 1, "bbox": [0, 0, 4, 4], "iscrowd": 0}
            for k, i in enumerate(numbers)
        ],
    }
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    (folder / "instances_train2017.json").write_text(json.dumps(content))
    plot.draw_plots(find_experiments("maskx/fig3"))
    with open("output/experiments/maskx/fig3/figure.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["series"], row["split"]) == ("transfer w/ cls+box", "voc")
    assert (float(row["x"]), float(row["increase"])) == (2.0, 25.0)


def test_a_figure_without_runs_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plot.draw_plots(find_experiments("shapemask/fig8/shapemask/voc/0.5"))
    assert capsys.readouterr().out == "Fig. 8 is not drawn: no run of it is done.\n"
    assert not Path("output").exists()


def test_analyses_read_what_the_run_before_left():
    *_, line = printed("teacher_student/fig2/maskrcnn")
    trained = "output/experiments/teacher_student/1/maskrcnn-R50/voc"
    assert f"{trained}/inference/coco_2017_val/coco_instances_results.json" in line
    assert line.startswith(
        "psis-d2 analyze overlap --truth datasets/coco/annotations/instances_val"
    )


@pytest.mark.slow
def test_a_stage_wise_row_runs_to_its_end(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert main(["experiment", "maskx/1a/randn/nonvoc", "--smoke"]) == 0
    results = json.loads(Path("output/smoke/maskx/1a/randn/nonvoc/results.json").read_text())
    assert {"segm_seen", "segm_unseen"} <= results.keys()
    assert main(["experiment", "maskx/1a/randn/nonvoc", "--smoke"]) == 0
    assert capfd.readouterr().out.count("there already") == 2
