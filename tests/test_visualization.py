"""Pictures of predictions."""

import os

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2 import visualization
from psis_d2.errors import UserError
from psis_d2.visualization import (
    SEEN_COLORS,
    UNSEEN_COLORS,
    draw_heat_map,
    draw_instances,
    heat_map_grid,
    instance_colors,
    prediction_grid,
    save_png,
)

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

NAMES = ("disk", "ring", "tee", "wave")
SEEN = [0, 1]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def make_mask(x0, y0, x1, y1, shape=(40, 50)):
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def make_prediction(classes, scores, with_masks=True, shape=(40, 50)):
    """Instances side by side, ten pixels wide."""
    boxes = [[5 + 12 * i, 10, 15 + 12 * i, 30] for i in range(len(classes))]
    instances = Instances(shape)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if with_masks:
        masks = [make_mask(*box, shape=shape) for box in boxes]
        instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *shape))
    return instances


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, in order."""
    texts = []
    put_text, draw_text = cv2.putText, visualization.Visualizer.draw_text

    def record_caption(canvas, text, *args, **kwargs):
        texts.append(text)
        return put_text(canvas, text, *args, **kwargs)

    def record_label(self, text, *args, **kwargs):
        texts.append(text)
        return draw_text(self, text, *args, **kwargs)

    monkeypatch.setattr(visualization.cv2, "putText", record_caption)
    monkeypatch.setattr(visualization.Visualizer, "draw_text", record_label)
    return texts


class TestColors:
    def test_families_tell_seen_from_unseen(self):
        colors = instance_colors([0, 2, 1, 3], SEEN)
        assert [color in SEEN_COLORS for color in colors] == [True, False, True, False]
        assert [color in UNSEEN_COLORS for color in colors] == [False, True, False, True]
        assert not set(SEEN_COLORS) & set(UNSEEN_COLORS)

    def test_category_keeps_its_color(self):
        assert instance_colors([1, 0], SEEN)[0] == instance_colors([0, 1], SEEN)[1]

    def test_instances_of_one_category_differ(self):
        assert len(set(instance_colors([2] * 5, SEEN))) == 5
        assert len(instance_colors([2] * 9, SEEN)) == 9


class TestDrawInstances:
    def test_size_and_input_unchanged(self, image):
        before = image.copy()
        boxes = np.array([[5, 6, 20, 25]])
        mask = make_mask(5, 6, 20, 25)
        drawn = draw_instances(image, boxes, [mask], ["disk"], [(255, 0, 0)], scale=3)
        assert drawn.shape == (120, 150, 3)
        assert drawn.dtype == np.uint8
        np.testing.assert_array_equal(image, before)

    def test_mask_is_tinted_and_the_rest_untouched(self, image):
        box, color = np.array([[10, 10, 40, 30]]), (255, 107, 53)
        drawn = draw_instances(image, box, [make_mask(10, 10, 40, 30)], [""], [color])
        inner, outer = np.s_[14:26, 14:36], np.ones((40, 50), dtype=bool)
        outer[7:33, 7:43] = False
        np.testing.assert_allclose(drawn[inner], 0.5 * image[inner] + 0.5 * np.array(color), atol=2)
        np.testing.assert_array_equal(drawn[outer], image[outer])

    def test_without_mask_only_the_box_is_drawn(self, image):
        drawn = draw_instances(image, np.array([[10, 10, 40, 30]]), [None], [""], [(1, 2, 3)])
        changed = (drawn != image).any(axis=2)
        assert changed[10, 12:38].all()
        near_the_line = make_mask(6, 6, 44, 34) & ~make_mask(14, 14, 36, 26)
        assert not changed[~near_the_line].any()

    def test_hole_stays_clear(self, image):
        mask = make_mask(5, 5, 45, 35) & ~make_mask(14, 12, 36, 28)
        drawn = draw_instances(image, np.array([[5, 5, 45, 35]]), [mask], [""], [(255, 0, 0)])
        np.testing.assert_array_equal(drawn[17:23, 19:31], image[17:23, 19:31])

    def test_no_instances(self, image):
        np.testing.assert_array_equal(draw_instances(image, np.zeros((0, 4)), [], [], []), image)


class TestPredictionGrid:
    def test_low_scores_are_left_out(self, image):
        three = {"image": image, "prediction": make_prediction([0, 2, 3], [0.9, 0.6, 0.4])}
        two = {"image": image, "prediction": make_prediction([0, 2], [0.9, 0.6])}
        np.testing.assert_array_equal(
            prediction_grid([three], NAMES, SEEN), prediction_grid([two], NAMES, SEEN)
        )
        lower = prediction_grid([three], NAMES, SEEN, min_score=0.3)
        assert (lower != prediction_grid([two], NAMES, SEEN, min_score=0.3)).any()

    def test_unseen_categories_are_marked(self, image, written):
        sample = {"image": image, "prediction": make_prediction([0, 2], [0.9, 0.6])}
        sample["truth"] = [
            {"category_id": 3, "mask": make_mask(5, 5, 20, 20), "bbox": [5, 5, 15, 15]},
            {"category_id": 1, "mask": None, "bbox": [20, 5, 15, 15]},
        ]
        prediction_grid([sample], NAMES, SEEN)
        assert {"disk 90", "tee* 60", "wave*", "ring"} <= set(written)
        legend = " ".join(written)
        assert "seen: masks in training" in legend
        assert "unseen *: boxes only in training" in legend

    def test_truth_adds_a_row_of_tiles(self, image):
        sample = {"image": image, "prediction": make_prediction([0], [0.9])}
        mask = make_mask(5, 5, 20, 20)
        plain = prediction_grid([sample], NAMES, SEEN, scale=2)
        both = prediction_grid(
            [{**sample, "truth": [{"category_id": 0, "mask": mask}]}], NAMES, SEEN, scale=2
        )
        assert both.shape[0] >= plain.shape[0] + 80
        assert both.shape[1] == plain.shape[1]

    def test_columns(self, image):
        sample = {"image": image, "prediction": make_prediction([0], [0.9])}
        heights, widths = zip(
            *(prediction_grid([sample] * n, NAMES, SEEN, 3, 8).shape[:2] for n in (1, 3, 4, 6, 7)),
            strict=True,
        )
        assert widths[0] < widths[1] == widths[2] == widths[3] == widths[4]
        assert heights[1] < heights[2] == heights[3] < heights[4]

    def test_images_of_different_sizes(self, image):
        large = np.zeros((700, 900, 3), dtype=np.uint8)
        samples = [
            {"image": image, "prediction": make_prediction([0], [0.9])},
            {"image": large, "prediction": make_prediction([2], [0.9], shape=(700, 900))},
        ]
        grid = prediction_grid(samples, NAMES, SEEN)
        assert grid.dtype == np.uint8
        assert grid.shape[1] < 2 * 540

    def test_boxes_only_and_empty(self, image):
        samples = [
            {"image": image, "prediction": make_prediction([0, 3], [0.9, 0.8], with_masks=False)},
            {"image": image, "prediction": make_prediction([], [])},
        ]
        assert prediction_grid(samples, NAMES, SEEN).ndim == 3
        with pytest.raises(ValueError, match="at least one"):
            prediction_grid([], NAMES, SEEN)


class TestSavePng:
    def test_round_trip_and_nothing_beside_it(self, image, tmp_path):
        path = tmp_path / "new" / "picture.png"
        save_png(str(path), image)
        np.testing.assert_array_equal(cv2.imread(str(path))[:, :, ::-1], image)
        assert list(path.parent.iterdir()) == [path]

    def test_failure_keeps_the_old_picture(self, image, tmp_path, monkeypatch):
        path = tmp_path / "picture.png"
        save_png(str(path), image)
        before = path.read_bytes()

        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="No space left"):
            save_png(str(path), 255 - image)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_path_that_cannot_be_written(self, image, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="Cannot write the picture"):
            save_png(str(tmp_path / "file" / "picture.png"), image)


class TestHeatMaps:
    def test_values_lie_where_they_belong(self):
        image = np.full((40, 60, 3), 100, np.uint8)
        values = np.zeros((4, 4))
        values[0, 3] = 1  # upper right
        drawn = draw_heat_map(image, np.array([20, 10, 40, 30]), values, scale=2)
        assert drawn.shape == (80, 120, 3)
        assert (drawn[:, :38] == 50).all()  # dimmed outside the box
        assert (drawn[:, 82:] == 50).all()
        yellow, blue = drawn[23, 77].astype(int), drawn[57, 43].astype(int)
        assert yellow[0] > yellow[2] + 100  # red and green
        assert blue[2] > blue[0] + 50

    def test_a_constant_map_has_one_color(self):
        drawn = draw_heat_map(np.zeros((8, 8, 3), np.uint8), [0, 0, 8, 8], np.full((3, 3), 0.5))
        assert (drawn == drawn[0, 0]).all()

    def test_grid(self, image, written):
        sample = {
            **{
                "image": image,
                "box": np.array([5.0, 10, 25, 30]),
                "mask": make_mask(5, 10, 20, 30),
            },
            **{"label": "tee*", "color": (255, 0, 0), "truth": make_mask(5, 10, 25, 30)},
            "maps": {"boundary": np.eye(28), "affinity": np.full((14, 14), 0.25)},
        }
        grid = heat_map_grid([sample] * 3, columns=2, side=50)
        assert written == ["tee*", "boundary 0 to 1", "affinity 0.25 to 0.25"] * 3
        strip = 3 * (50 + 8) + 8
        assert grid.shape == (2 * (50 + 22 + 8) + 8, 2 * strip + 8, 3)
        # The annotated mask's outline is drawn in each tile; without annotation there is none.
        bare = heat_map_grid([{**sample, "truth": None}], side=50)
        for tile in range(3):
            x = 8 + tile * 58
            red = (grid[22:72, x : x + 50] == (255, 40, 40)).all(axis=2)
            assert red.any(axis=0).sum() > 10
        assert not (bare == (255, 40, 40)).all(axis=2).any()
        with pytest.raises(ValueError, match="at least one sample"):
            heat_map_grid([])

    def test_box_at_the_edge_of_the_image(self, image):
        sample = {
            "image": image,
            "box": np.array([-3.0, 20, 4, 60]),
            "mask": make_mask(0, 20, 4, 40),
        }
        sample |= {"label": "", "color": (255, 0, 0), "maps": {"affinity": np.eye(14)}}
        assert heat_map_grid([sample], side=50).shape == (80 + 8, 2 * 58 + 16, 3)
