"""predict --heat-maps and --boxes: what a mask head saw, in found and in annotated boxes."""

import json
from pathlib import Path

import psis_d2
from psis_d2.analysis import best_overlaps, read_maps, read_truth
from psis_d2.cli import main
from psis_d2.errors import UserError
from psis_d2.inference import predict
from psis_d2.inference.box_files import GivenBoxes, annotated_mask
from psis_d2.inference.heat_maps import heat_maps_of, keep_heat_maps

import cv2
import numpy as np
import pytest
import torch

from saved_models import save_model
from tiny_data import write_tiny_data


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path / "data", images=2)


@pytest.fixture(scope="module")
def opmask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opmask")
    return save_model(folder, config="quick/opmask_shapes.yaml", marks_all=False)


def edit(data, change) -> None:
    content = json.loads(Path(data["json"]).read_text())
    change(content)
    Path(data["json"]).write_text(json.dumps(content))


def test_objects_bring_the_maps_that_their_head_makes(opmask, data):
    predictor = psis_d2.Predictor(opmask, device="cpu")
    image = cv2.imread(f"{data['images']}/000.png")
    boxes, classes = [[4, 4, 40, 30], [9, 9, 9, 20], [10, 8, 50, 60]], [0, 1, 2]
    before = predictor(image, boxes, classes)
    keep_heat_maps(predictor)
    seen = []
    head = predictor.model.roi_heads.mask_head
    class_maps = head.class_maps
    head.class_maps = lambda context: seen.append(class_maps(context)) or seen[-1]
    found = predictor(image, boxes, classes)
    assert torch.equal(found.pred_masks, before.pred_masks)
    (name,), (maps,) = zip(*heat_maps_of(found).items(), strict=True)
    assert name == "class activation"
    torch.testing.assert_close(maps[[0, 2]], seen[0][[0, 2]])
    assert (maps[1] == 0).all()  # a box without area has none


def test_annotated_objects_take_the_place_of_found_ones(predictor, data, tmp_path):
    square = [[4, 4, 12, 4, 12, 12, 4, 12]]
    objects = [
        {"bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"bbox": [500, 500, 3, 3]},  # outside
        {"bbox": "none"},
        {"bbox": [2, 3, 20, 10], "segmentation": None},
        {"bbox": [4, 4, 8, 8], "segmentation": square},
    ]

    def change(content):
        common = {"image_id": content["images"][0]["id"], "category_id": 1, "iscrowd": 0}
        content["annotations"] = [{"id": i, **common, **x} for i, x in enumerate(objects)]

    edit(data, change)
    given = GivenBoxes(data["json"], predictor)
    path = f"{data['images']}/000.png"
    image = cv2.imread(path)
    found, truth = given.predict(path, image)
    assert found.pred_boxes.tensor.tolist() == [[2, 3, 22, 13], [4, 4, 12, 12]]
    assert truth[0] is None and truth[1].sum() == 64 and truth[1][4:12, 4:12].all()
    direct = predictor(image, [[2, 3, 22, 13], [4, 4, 12, 12]], found.pred_classes.numpy())
    assert torch.equal(found.pred_masks, direct.pred_masks)
    # an image that the file does not name has no objects, nor has one without annotations
    for name in ("001.png", "elsewhere.png"):
        found, truth = given.predict(f"{data['images']}/{name}", image)
        assert len(found) == 0 == len(truth)
        assert found.pred_masks.shape == (0, *image.shape[:2])
    predict(predictor, [data["images"]], str(tmp_path / "out"), boxes=data["json"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [x["bbox"] for x in results] == [[2, 3, 20, 10], [4, 4, 8, 8]]


def test_the_longest_end_of_a_path_names_the_image(predictor, data):
    def change(content):
        content["annotations"] = []
        content["images"] = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b/./a.png"}]

    edit(data, change)
    given = GivenBoxes(data["json"], predictor)
    assert given.record_of("x/a.png")["id"] == 1
    assert given.record_of("x/b/a.png")["id"] == 2
    assert given.record_of("x/c.png") is None and given.record_of("xa.png") is None


def test_masks_in_every_spelling():
    square = np.zeros((6, 8), bool)
    square[1:4, 2:5] = True
    polygon = [[2, 1, 5, 1, 5, 4, 2, 4]]
    runs = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]}
    for segmentation in (polygon, runs):
        assert (annotated_mask({"segmentation": segmentation}, 6, 8) == square).all()
    for segmentation in (None, [], [[1, 2]]):
        assert annotated_mask({"segmentation": segmentation}, 6, 8) is None


def test_categories_are_chosen(predictor, data, tmp_path):
    counts = {}
    for which in ("all", "seen", "unseen"):
        out = tmp_path / which
        counts[which] = predict(
            predictor, [data["images"]], str(out), boxes=data["json"], categories=which
        )
        classes = {x["category_id"] for x in json.loads((out / "results.json").read_text())}
        assert classes == {"all": {1, 2, 3}, "seen": {1}, "unseen": {2, 3}}[which]
    assert counts["all"] == counts["seen"] + counts["unseen"]


def test_the_command_draws_a_picture_of_each_image_with_objects(opmask, tmp_path):
    data = write_tiny_data(tmp_path / "data", images=3, masked=("box", "cup", "hat"))
    edit(data, lambda content: content["annotations"].pop(2))
    edit(data, lambda content: content["annotations"].pop(2))  # the second image has none
    out = tmp_path / "out"
    line = ["predict", opmask, data["images"], "--device", "cpu", "--output", str(out)]
    assert main([*line, "--heat-maps", "--boxes", data["json"], "--categories", "unseen"]) == 0
    names = {path.name for path in out.iterdir()}
    assert {n for n in names if "heat" in n} == {"000.heat-maps.png", "002.heat-maps.png"}
    picture = cv2.imread(str(out / "000.heat-maps.png"))
    red = (picture[..., 2] > 240) & (picture[..., 1] < 60) & (picture[..., 0] < 60)
    assert red.sum() > 20  # the annotated masks


def test_what_has_no_heat_maps_is_one_sentence(predictor, data, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"no heat-maps \(FCNMaskHead\); leave --heat-maps out"):
        predict(predictor, [data["images"]], out, heat_maps=True)
    condinst = save_model(tmp_path, config="quick/condinst_shapes.yaml", marks_all=False)
    with pytest.raises(UserError, match=r"no heat-maps \(CondInst\)"):
        predict(psis_d2.Predictor(condinst, device="cpu"), [data["images"]], out, heat_maps=True)
    with pytest.raises(UserError, match="names none of the images"):
        other = write_tiny_data(tmp_path / "other", images=1)
        edit(other, lambda content: content["images"][0].update(file_name="x.png"))
        predict(predictor, [data["images"]], out, boxes=other["json"])
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="leave videos and cameras out"):
        predict(predictor, [str(tmp_path / "clip.mp4")], out, boxes=data["json"])
    with pytest.raises(UserError, match="categories is 'some'"):
        predict(predictor, [data["images"]], out, categories="some")
    assert not Path(out).exists()


def test_saved_maps_are_those_of_the_annotated_boxes(tmp_path):
    """ShapeProp's, and what an analysis makes of them."""
    data = write_tiny_data(tmp_path / "data", images=2, masked=("box", "cup", "hat"))
    model = save_model(tmp_path, config="quick/shapeprop_shapes.yaml", marks_all=False)
    out = tmp_path / "out"
    line = ["predict", model, data["images"], "--device", "cpu", "--output", str(out)]
    assert main([*line, "--save-heat-maps", "--no-pictures", "--boxes", data["json"]]) == 0
    assert not list(out.glob("*.png"))
    truth = read_truth(data["json"])
    saved = read_maps(str(out), truth)
    assert list(saved.maps) == ["saliency", "shape activation"]
    boxes = np.array([a["bbox"] for a in truth.annotations])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(saved.boxes, boxes, atol=1e-3)
    assert saved.image_ids == [a["image_id"] for a in truth.annotations]
    predictor = psis_d2.Predictor(model, device="cpu")
    keep_heat_maps(predictor)
    rows = [i for i, key in enumerate(saved.image_ids) if key == saved.image_ids[0]]
    image = cv2.imread(f"{data['images']}/000.png")
    classes = [truth.annotations[i]["category_id"] for i in rows]
    for name, maps in heat_maps_of(predictor(image, boxes[rows], classes)).items():
        assert maps.min() >= 0 and maps.max() <= 1
        np.testing.assert_allclose(saved.maps[name][rows], maps.numpy(), atol=1e-3)
    found = best_overlaps(truth, saved)
    assert len(found) == 2 * len(boxes) and all(0 < row["overlap"] <= 1 for row in found)
