"""predict: overlays and COCO results of pictures and videos."""

import json
import shutil

from psis_d2.cli import main
from psis_d2.errors import UserError
from psis_d2.inference import predict
from psis_d2.inference.media import Video, VideoWriter, find_media
from psis_d2.inference.predict import overlay

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from saved_models import CLASSES
from tiny_data import write_tiny_data


@pytest.fixture
def images(tmp_path):
    return write_tiny_data(tmp_path / "data", images=3)["images"]


def test_results_and_overlays(predictor, images, tmp_path):
    count = predict(predictor, [images], str(tmp_path / "out"), min_score=0.0)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000.png", "001.png", "002.png", "images.json", "results.json"]
    truth = COCO(str(tmp_path / "out" / "images.json"))
    found = truth.loadRes(str(tmp_path / "out" / "results.json"))
    assert len(found.anns) == count > 0
    for number in truth.getImgIds():
        record = truth.imgs[number]
        drawn = cv2.imread(str(tmp_path / "out" / record["file_name"].split("/")[-1]))
        assert drawn.shape == (4 * record["height"], 4 * record["width"], 3)  # as they are small
        objects = [found.anns[i] for i in found.getAnnIds(number)]
        direct = predictor(cv2.imread(record["file_name"]))
        for row, entry in enumerate(objects):
            assert (mask_util.decode(entry["segmentation"]) == direct.pred_masks[row].numpy()).all()
            assert entry["category_id"] == direct.pred_classes[row] + 1
    assert {x["name"] for x in truth.cats.values()} == set(CLASSES)


def test_small_images_are_enlarged_for_their_labels_alone(predictor):
    sides = {(64, 48): 4, (128, 100): 4, (129, 20): 3, (170, 256): 2, (257, 10): 1, (900, 9): 1}
    for (height, width), scale in sides.items():
        image = np.zeros((height, width, 3), np.uint8)
        found = predictor(image, np.zeros((0, 4)), np.zeros(0, np.int64))
        shape = overlay(image, found, predictor).shape
        assert shape == (scale * height, scale * width, 3)
        assert overlay(image, found, predictor, enlarge=False).shape == image.shape


def test_given_boxes_are_labeled_with_the_scores_of_their_masks(predictor, monkeypatch):
    drawn = []
    monkeypatch.setitem(
        overlay.__globals__, "draw_prediction", lambda *args, **_: drawn.append(args)
    )
    image = np.zeros((64, 48, 3), np.uint8)
    found = predictor(image, [[4, 4, 40, 30]], [0])
    for given in (True, False):
        overlay(image, found, predictor, given=given)
    of_masks, of_boxes = (args[1].scores for args in drawn)
    assert of_masks.tolist() == found.mask_scores.tolist() != [1.0]
    assert of_boxes.tolist() == [1.0] == found.scores.tolist()


def test_stopped_and_continued_equals_uninterrupted(predictor, images, tmp_path, monkeypatch):
    predict(predictor, [images], str(tmp_path / "whole"), min_score=0.0, pictures=False)
    calls = []

    def stop_at_the_second(image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predictor(image)

    class Stopping:
        def __getattr__(self, name):
            return getattr(predictor, name)

        def __call__(self, image):
            return stop_at_the_second(image)

    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(), [images], out, min_score=0.0, pictures=False)
    predict(Stopping(), [images], out, min_score=0.0, pictures=False)
    assert len(calls) == 4  # one done, one stopped, two after it
    whole = (tmp_path / "whole" / "results.json").read_bytes()
    assert (tmp_path / "out" / "results.json").read_bytes() == whole


def test_a_video(predictor, tmp_path):
    path = str(tmp_path / "clip.mp4")
    with VideoWriter(path, fps=5) as writer:
        for i in range(4):
            writer.add(np.full((48, 64, 3), 60 * i, np.uint8))
    predict(predictor, [path], str(tmp_path / "out"), min_score=0.0)
    frames = list(Video(str(tmp_path / "out" / "clip.mp4")))
    assert [x.shape for x in frames] == [(48, 64, 3)] * 4
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [(x["frame"], x["id"]) for x in listed] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_camera_is_recorded_until_it_is_interrupted(predictor, tmp_path, monkeypatch):
    class Camera:
        def __init__(self, number):
            assert number == 3

        def isOpened(self):
            return True

        def get(self, what):
            return 10.0 if what == cv2.CAP_PROP_FPS else -1.0

        def read(self):
            self.count = getattr(self, "count", 0) + 1
            if self.count == 4:
                raise KeyboardInterrupt
            return True, np.zeros((48, 64, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    for limit, expected in ((None, 3), (2, 2)):
        out = tmp_path / f"out{limit}"
        predict(predictor, [], str(out), webcam=3, frames=limit, min_score=0.0)
        listed = json.loads((out / "images.json").read_text())["images"]
        assert [x["file_name"] for x in listed] == ["webcam3"] * expected
        assert (out / "webcam3.mp4").is_file()


def test_media_are_found_by_folder_pattern_and_name(images, tmp_path):
    (tmp_path / "data" / "images" / "notes.txt").write_text("no picture")
    (tmp_path / "b.MP4").write_bytes(b"")
    found, videos = find_media([images, f"{images}/0*.png", str(tmp_path / "b.MP4")])
    assert [x[-7:] for x in found] == ["000.png", "001.png", "002.png"]
    assert videos == [str(tmp_path / "b.MP4")]


def test_images_of_one_name_do_not_overwrite_each_other(predictor, images, tmp_path):
    shutil.copytree(images, tmp_path / "more")
    predict(predictor, [images, str(tmp_path / "more")], str(tmp_path / "out"))
    names = sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    assert names == ["000", "000-2", "001", "001-2", "002", "002-2"]


@pytest.mark.parametrize("name", ["nothing.jpg", "*.jpg", "notes.txt", "empty"])
def test_what_is_no_picture_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="notes.txt|is no image"):
        find_media([name])


def test_a_damaged_picture_is_named(predictor, images, tmp_path):
    (tmp_path / "data" / "images" / "001.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(UserError, match="001.png"):
        predict(predictor, [images], str(tmp_path / "out"))


def test_the_command(weights, images, tmp_path, capsys):
    main(["predict", weights, images, "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert (tmp_path / "out" / "results.json").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["predict", weights, "nowhere.jpg", "--device", "cpu"])
    assert stop.value.code == 2
    assert "nowhere.jpg" in capsys.readouterr().err
