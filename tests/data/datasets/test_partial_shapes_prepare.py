"""PartialShapes as a run finds it: made once, kept, mended where files are damaged."""

import os
import shutil
from pathlib import Path

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.datasets.partial_shapes import IMAGE_SIZE, generate, json_path, prepare
from psis_d2.errors import UserError

import cv2
import numpy as np
import pytest

from at_once import two_at_once
from shapes_files import read_files, read_json


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_larger(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((2 * IMAGE_SIZE, 2 * IMAGE_SIZE, 3), np.uint8))


DAMAGE = {
    "an empty json": lambda folder: Path(json_path(str(folder), "train")).write_text(""),
    "a cut-off json": lambda folder: half(Path(json_path(str(folder), "val"))),
    "no json": lambda folder: Path(json_path(str(folder), "train")).unlink(),
    "an empty image": lambda folder: (folder / "train" / "000002.png").write_bytes(b""),
    "a cut-off image": lambda folder: half(folder / "val" / "000001.png"),
    "an image of another size": lambda folder: save_larger(folder / "train" / "000003.png"),
    "another file": lambda folder: (folder / "val" / "000002.png").write_text("<html>" * 99),
    "a missing image": lambda folder: (folder / "val" / "000002.png").unlink(),
    "a missing folder": lambda folder: shutil.rmtree(folder / "val"),
}


class TestPrepare:
    def test_generates_once(self, tmp_path):
        folder = tmp_path / "shapes"
        prepare(str(folder), 1, 1)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        prepare(str(folder), 1, 1)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        assert read_json(folder, "val")["info"]["seed"] == 0

    def test_keeps_a_chosen_seed_and_size(self, small):
        before = read_files(small)
        prepare(str(small))
        assert read_files(small) == before

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_files_are_made_again_with_a_warning(self, small, tmp_path, damage, caplog):
        folder = tmp_path / "shapes"
        shutil.copytree(small, folder)
        whole = read_files(folder)
        DAMAGE[damage](folder)
        assert read_files(folder) != whole
        with caplog.at_level("WARNING", logger="psis_d2"):
            prepare(str(folder), 6, 2)  # what is left of it knows its seed
        assert "missing, empty or cut off" in caplog.text
        assert read_files(folder) == whole
        caplog.clear()
        prepare(str(folder), 6, 2)
        assert caplog.text == ""

    def test_without_any_json_it_is_that_of_seed_0(self, tmp_path):
        folder = tmp_path / "shapes"
        prepare(str(folder), 3, 2)
        whole = read_files(folder)
        for split in ("train", "val"):
            Path(json_path(str(folder), split)).write_text("")
        prepare(str(folder), 3, 2)
        assert read_files(folder) == whole

    @pytest.mark.parametrize("content", ["{}", "[]", '{"info": {"generator": "mine"}}'])
    def test_somebody_elses_json_stays(self, small, tmp_path, content):
        folder = tmp_path / "shapes"
        shutil.copytree(small, folder)
        Path(json_path(str(folder), "val")).write_text(content)
        before = read_files(folder)
        with pytest.raises(UserError, match="something else"):
            prepare(str(folder), 6, 2)
        assert read_files(folder) == before

    def test_files_of_others_beside_a_damaged_one_stay(self, small, tmp_path):
        folder = tmp_path / "shapes"
        shutil.copytree(small, folder)
        Path(json_path(str(folder), "val")).write_text("")
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="something else"):
            prepare(str(folder), 6, 2)

    @pytest.mark.parametrize("damaged", [False, True])
    def test_two_processes_at_once_both_end_well(self, small, tmp_path, damaged):
        folder = tmp_path / "shapes"
        prepare(str(folder), 3, 2)
        whole = read_files(folder)

        def run(barrier):
            for _ in range(4):
                if barrier.wait(60) == 0:
                    if damaged:
                        DAMAGE["a cut-off image"](folder)
                        DAMAGE["an empty json"](folder)
                    else:
                        shutil.rmtree(folder)
                barrier.wait(60)
                prepare(str(folder), 3, 2)
                barrier.wait(60)
                assert read_files(folder) == whole

        two_at_once(run)
        assert read_files(folder) == whole

    def test_refuses_another_version(self, tmp_path):
        generate(str(tmp_path), 1, 1)
        with pytest.raises(UserError, match="version 1 instead of 2"):
            prepare(str(tmp_path), 1, 1, version="2")

    def test_refuses_other_content(self, tmp_path):
        os.makedirs(tmp_path / "train")
        with pytest.raises(UserError, match="something else"):
            prepare(str(tmp_path))
