"""Whole runs on small inputs after public bug reports: the row of each says what has to happen.

The folders are ``shared/cases`` beside the repository; without it all is skipped. What other tests
show of the kinds that have no folder is in the second table.
"""

import json
import re
from pathlib import Path

from psis_d2.engine.checkpoint import read_entry

import pytest

from run_processes import Run
from tiny_data import SMALL

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
TRAINS, REFUSED = 0, 2
ALL_READ = r"masks: 8 of 12 instances keep theirs \(2 of 3 categories seen\); 8 had one$"
INSTANCES = ("PSIS.CROWDS", "instances")
TWELVE_BITS = ("PSIS.PIXEL_RANGE", "[0, 4095]")

# folder, options: (how the run ends, what it says)
ROWS = {
    ("j01_cvat_iscrowd_rle", ()): (REFUSED, "PSIS.CROWDS instances takes them"),
    ("j01_cvat_iscrowd_rle", INSTANCES): (TRAINS, "PSIS.CROWDS takes 8 crowd regions as instances"),
    ("j02_all_iscrowd", ()): (REFUSED, r"12 crowd regions; PSIS.CROWDS instances"),
    ("j02_all_iscrowd", INSTANCES): (TRAINS, "PSIS.CROWDS takes 12 crowd regions as instances"),
    ("j03_iscrowd_string", ()): (TRAINS, ALL_READ),
    ("j36_box_only_str", ()): (TRAINS, ALL_READ),
    ("m07_ignore_string_area_str", ()): (TRAINS, ALL_READ),
    ("i01_png16", ()): (TRAINS, ALL_READ),
    ("i02_png16_12bit", TWELVE_BITS): (TRAINS, ALL_READ),
    ("i03_tiff_float", ()): (TRAINS, ALL_READ),
    ("l07_auto_degenerate", ()): (TRAINS, "4 masks are malformed or without a pixel"),
    ("j15_normalised_poly", ()): (TRAINS, "the masks look like shares from 0 to 1"),
    ("j16_percent_poly", ()): (TRAINS, "the masks look like percentages"),
    ("j17_normalised_all", ()): (TRAINS, "nearly all boxes lie between 0 and 1"),
    ("j18_xyxy", ()): (TRAINS, "nearly all boxes look like two corners"),
    ("j21_mixed_ids", ()): (TRAINS, ALL_READ),
    ("i19_missing_val_image", ()): (REFUSED, "1 of 3 image files of val.* are missing"),
    ("i20_bad_val_json", ()): (REFUSED, "Annotation 6 in .*val.json has no usable bbox"),
    ("e23_testdev", ()): (TRAINS, "has no annotations, so nothing is measured"),
    ("k13_order_differs", ()): (TRAINS, ALL_READ),
    ("j09_flat_polygon", ()): (TRAINS, ALL_READ),
    ("j10_point_pairs", ()): (TRAINS, ALL_READ),
    ("j11_point_pairs_nested", ()): (TRAINS, ALL_READ),
    ("j14_rle_float_counts", ()): (TRAINS, ALL_READ),
    ("j05_roboflow_dup_name", ()): (TRAINS, "repeats a name and is unused"),
    ("j24_no_ann_id", ()): (TRAINS, ALL_READ),
    ("i18_lvis_no_file_name", ()): (TRAINS, ALL_READ),
}
VALIDATION = {"e23_testdev": "test.json", "k13_order_differs": "val2.json"}
# The masks of l07's third category have no pixel.
SEEN = {"l07_auto_degenerate": [0, 1]}
FAST = ("j02_all_iscrowd", "i19_missing_val_image", "j21_mixed_ids")

# Kinds without a folder, and the tests that show the right value.
ELSEWHERE = {
    "registered functions: category ids from 1, repeated image ids": (
        "data/test_records.py::test_bad_input_is_one_sentence_that_names_the_data_set"
    ),
    "registered functions: areas of their own": (
        "data/test_records.py::test_areas_of_its_own_are_kept_where_they_are_positive_numbers"
    ),
    "registered functions: numpy ids": "data/test_records.py::test_numpy_becomes_python",
    "registered functions: boxes as arrays": (
        "data/test_records.py::test_boxes_as_arrays_and_a_path_as_file_name_train"
    ),
    "registered functions beside a json": (
        "data/test_records.py::"
        "test_what_a_function_returns_is_used_also_where_the_metadata_names_a_json"
    ),
    "ids beyond 2^53": (
        "data/test_cases.py::test_image_ids_of_any_size_and_of_mixed_kinds_are_kept"
    ),
    "annotation ids of any size and kind": (
        "data/test_cases.py::test_annotation_ids_of_any_size_and_kind_are_kept"
    ),
    "ids of the file in results": "evaluation/test_ids.py::test_ids_of_any_kind_come_back",
    "the split of a checkpoint is compared": "engine/test_split.py::test_a_run_keeps_its_split",
    "another split when resuming": (
        "engine/test_checkpoint.py::test_resuming_under_another_split_is_refused"
    ),
    "LVIS is evaluated as LVIS": (
        "evaluation/test_lvis.py::test_perfect_predictions_of_real_annotations"
    ),
    "training without any mask": (
        "data/test_cases.py::test_training_without_a_usable_mask_is_refused"
    ),
    "a checkpoint of which no key fits": (
        "engine/test_foreign_checkpoints.py::test_random_weights_have_to_be_asked_for"
    ),
    "metrics stay below OUTPUT_DIR, names without slashes": (
        "evaluation/test_run.py::test_files_and_metrics_of_data_sets_with_long_paths_for_names"
    ),
    "quick configs on own data": "engine/test_setup.py::test_a_quick_config_on_own_data_ends_well",
    "the run's own config.yaml": (
        "engine/test_setup.py::test_the_config_of_a_run_can_be_used_again"
    ),
    "weights that are none": (
        "engine/test_foreign_checkpoints.py::test_every_kind_loads_right_or_is_one_sentence"
    ),
    "no network for the default weights": (
        "engine/test_checkpoint.py::test_weights_that_cannot_be_downloaded"
    ),
    "a config without its base, tabs and lists in a yaml": "test_config_files.py::test_bad_files",
    "OUTPUT_DIR that is a file or cannot be written": (
        "engine/test_setup.py::test_output_dirs_that_cannot_be_used"
    ),
    "a damaged image in drawn predictions": (
        "inference/test_predict.py::test_a_damaged_picture_is_named"
    ),
    "a damaged image in drawn annotations": (
        "check/test_check.py::test_headers_alone_do_not_show_damage"
    ),
    "ShapeMask's priors and a box of width 1e-7": (
        "data/test_shape_priors.py::test_a_box_of_hardly_any_width_has_a_shape"
    ),
    "ShapeMask's head and a box of width 1e-7": (
        "modeling/test_shapemask.py::"
        "test_a_box_of_hardly_any_width_has_finite_masks_losses_and_gradients"
    ),
    "torch.func.jvp through an op: shape prior blend": (
        "ops/test_shape_prior_blend.py::test_func_transforms"
    ),
    "torch.func.jvp through an op: message passing": (
        "ops/test_message_passing.py::test_func_transforms"
    ),
    "torch.func.jvp through an op: affinity attention": (
        "ops/test_affinity_attention.py::test_func_transforms"
    ),
    "a misspelt head": "engine/test_model_keys.py::test_misspelled_names",
    "an empty last_checkpoint": (
        "engine/test_checkpoint.py::test_a_damaged_last_checkpoint_falls_back_to_the_newest"
    ),
    "--resume and a new learning rate": (
        "engine/test_setup.py::test_a_resumed_run_says_which_settings_it_keeps"
    ),
    "keys without effect": "engine/test_model_keys.py::test_keys_without_effect",
}


def line_of(folder: Path, output: Path, options=(), val: str = "val.json") -> list[str]:
    line = ["--config-file", str(ROOT / "configs" / "quick" / "agnostic_shapes.yaml")]
    line += ["--num-gpus", "0"]
    for split, name in (("train", "train.json"), ("val", val)):
        line += [f"--{split}-json", str(folder / name), f"--{split}-images", str(folder / "images")]
    line += [str(x) for item in SMALL.items() for x in item]
    line += ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"]
    return [*line, "TEST.DETECTIONS_PER_IMAGE", "5", *options]


def speed(row):
    folder, options = row
    name = "-".join([folder, *options[:1]])
    return pytest.param(*row, id=name, marks=[] if folder in FAST else [pytest.mark.slow])


@pytest.mark.skipif(not CASES.is_dir(), reason="the folders are not here")
@pytest.mark.parametrize(("folder", "options"), map(speed, ROWS))
def test_a_run_on_the_folder(tmp_path, folder, options):
    status, words = ROWS[folder, options]
    val = VALIDATION.get(folder, "val.json")
    line = line_of(CASES / folder, tmp_path / "out", options, val)
    with Run(line, tmp_path / "log") as run:
        assert run.status(300) == status, run.text()[-3000:]
        said = run.text()
    assert "Traceback" not in said
    if status == TRAINS:
        said = (tmp_path / "out" / "log.txt").read_text()
    assert re.search(words, said, re.MULTILINE), said[-3000:]
    final = tmp_path / "out" / "model_final.pth"
    assert final.exists() == (status == TRAINS)  # and not even one iteration was lost
    if status == REFUSED:
        return
    entry = read_entry(str(final))
    assert entry["class_names"] == ["box", "tri", "disk"]
    if folder in SEEN:
        assert sorted(entry["seen_ids"]) == SEEN[folder]
    (results,) = (tmp_path / "out" / "inference").glob("*/coco_instances_results.json")
    ids = {
        json.dumps(image["id"])
        for image in json.loads((CASES / folder / val).read_text())["images"]
    }
    assert {json.dumps(r["image_id"]) for r in json.loads(results.read_text())} <= ids
    measured = (tmp_path / "out" / "results.json").exists()
    assert measured == (folder != "e23_testdev")


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_kind_without_a_folder_has_its_test(kind):
    file, _, name = ELSEWHERE[kind].partition("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()
