"""The synthetic data set: what is drawn, what is written, and how it is found."""

import colorsys
import hashlib
import json
import os

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.datasets import (
    builtin,
    partial_shapes,
    shapes_drawing,
    shapes_parts,
    shapes_scene,
)
from psis_d2.data.datasets.partial_shapes import generate, json_path, prepare
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.errors import UserError

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask

from at_once import two_at_once
from shapes_files import read_files, read_json


@pytest.fixture(scope="module", params=["1", "2"])
def compose(request):
    """`compose_image` of an edition."""
    return partial_shapes.EDITIONS[request.param].compose_image


@pytest.fixture(scope="module")
def scenes(compose):
    """Image and objects of 60 validation images."""
    return [compose(0, "val", index) for index in range(60)]


class TestOutlines:
    def test_rectangle_covers_its_pixels(self):
        # From (2, 1) to (5, 3): three columns and two rows.
        mask, left, top = shapes_drawing.rasterize([np.array([[2, 1], [5, 1], [5, 3], [2, 3]])])
        ys, xs = np.nonzero(mask)
        assert sorted(zip(xs + left, ys + top, strict=True)) == [
            (x, y) for x in (2, 3, 4) for y in (1, 2)
        ]

    def test_mask_agrees_with_the_even_odd_rule(self):
        contours = shapes_drawing.place_outline(
            shapes_drawing.OUTLINES["ring"], (40.3, 35.8), 21, 0.3, 1.1, False
        )
        mask, left, top = shapes_drawing.rasterize(contours)
        height, width = mask.shape
        px = np.arange(width)[None, :] + left + 0.5
        py = np.arange(height)[:, None] + top + 0.5
        expected = np.zeros((height, width), dtype=bool)
        for points in contours:
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if y0 != y1:
                    crosses = (y0 > py) != (y1 > py)
                    expected ^= crosses & (px < x0 + (py - y0) * (x1 - x0) / (y1 - y0))
        # A pixel on the edge may go either way: its center is not its area.
        edge = cv2.dilate(expected.astype(np.uint8), np.ones((3, 3))) != cv2.erode(
            expected.astype(np.uint8), np.ones((3, 3))
        )
        assert (mask == expected)[~edge].all()
        assert (mask != expected).sum() < 0.15 * edge.sum()

    @pytest.mark.parametrize(
        ("name", "area"),
        [
            ("disk", np.pi),
            ("ellipse", 0.6 * np.pi),
            ("ring", (1 - 0.6**2) * np.pi),
            ("bar", 2 * 0.9),
            ("halfdisk", np.pi / 2),
            ("hexagon", 1.5 * np.sqrt(3)),
            ("cross", 4 * 0.58 - 0.58**2),
            ("capsule", 1.12 * 0.88 + 0.44**2 * np.pi),
            ("trapeze", 1.32 * (0.48 + 0.97)),
        ],
    )
    def test_area(self, name, area):
        contours = shapes_drawing.OUTLINES[name]
        placed = shapes_drawing.place_outline(contours, (64.2, 63.7), 50, 0.4, 1.1, True)
        mask, _, _ = shapes_drawing.rasterize(placed)
        assert mask.sum() == pytest.approx(area * 50**2, rel=0.015)

    def test_outlines_fit_the_radius(self):
        for contours in shapes_drawing.OUTLINES.values():
            reach = np.linalg.norm(np.concatenate(contours), axis=1).max()
            assert 0.8 < reach < 1.42

    def test_ring_has_a_hole(self):
        _, mask = shapes_scene.render_category("ring", 64)
        count, labels = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
        assert not mask[32, 32]
        assert count == 3  # the mask itself, outside, hole
        assert labels[32, 32] != labels[0, 0]

    def test_flip_mirrors(self):
        contours = shapes_drawing.OUTLINES["ell"]
        plain = shapes_drawing.place_outline(contours, (32, 32), 20, 0, 1, False)
        mirrored = shapes_drawing.place_outline(contours, (32, 32), 20, 0, 1, True)
        np.testing.assert_allclose(mirrored[0], plain[0] * (-1, 1) + (64, 0))


class TestColors:
    @pytest.mark.parametrize("hsv", [(0, 1, 1), (0.3, 0.5, 0.8), (0.55, 0.9, 0.4), (0.97, 0.2, 1)])
    def test_hsv_to_rgb(self, hsv):
        expected = 255 * np.array(colorsys.hsv_to_rgb(*hsv))
        np.testing.assert_allclose(shapes_drawing.hsv_to_rgb(*hsv), expected, atol=1e-3)
        shifted = shapes_drawing.hsv_to_rgb(hsv[0] - 2, *hsv[1:])
        np.testing.assert_allclose(shifted, expected, atol=1e-3)

    @pytest.mark.parametrize("kind", shapes_drawing.PATTERN_KINDS)
    def test_pattern_shows_both_colors(self, kind):
        mix = shapes_drawing.pattern(kind, np.random.default_rng(1), 50, 60, 8.0, 0.4)
        assert mix.shape == (50, 60)
        assert mix.dtype == np.float32
        assert mix.min() >= 0
        assert mix.max() <= 1
        if kind == "plain":
            assert not mix.any()
        else:
            assert 0.1 < mix.mean() < 0.65

    def test_stripes_repeat_after_the_period(self):
        mix = shapes_drawing.pattern("stripes", np.random.default_rng(1), 8, 64, 8.0, 0.0)
        np.testing.assert_array_equal(mix[:, 8:], mix[:, :-8])
        assert (mix == mix[0]).all()
        assert mix.mean() == 0.5


class TestCatalog:
    def test_every_pattern_kind_once_a_side(self):
        looks = shapes_scene.catalog()
        assert sorted(look.kind for look in looks[:10]) == sorted(shapes_drawing.PATTERN_KINDS)
        assert sorted(look.kind for look in looks[10:]) == sorted(shapes_drawing.PATTERN_KINDS)

    def test_hues_are_evenly_spaced_and_alternate(self):
        looks = shapes_scene.catalog()
        seen = sorted(look.hue for look in looks[:10])
        unseen = sorted(look.hue for look in looks[10:])
        np.testing.assert_allclose(seen, np.arange(0, 20, 2) / 20, atol=1e-9)
        np.testing.assert_allclose(unseen, np.arange(1, 20, 2) / 20, atol=1e-9)

    def test_names(self):
        names = shapes_scene.SHAPE_NAMES
        assert len(set(names)) == 20
        assert set(names) == set(shapes_drawing.OUTLINES)

    def test_both_splits_are_valid(self):
        names = shapes_scene.SHAPE_NAMES
        assert resolve_seen_classes("shapes", names) == list(range(10))
        assert resolve_seen_classes("shapes-swapped", names) == list(range(10, 20))

    @pytest.mark.parametrize("name", ["ellipse", "dumbbell"])  # the two plain ones
    def test_objects_wear_the_hue_of_their_category(self, name):
        number = shapes_scene.SHAPE_NAMES.index(name)
        look = shapes_scene.catalog()[number]
        assert look.kind == "plain"
        distances = []
        for index in range(60):
            image, objects = shapes_scene.compose_image(0, "val", index)
            for item in objects:
                if item.category_id == number + 1:
                    mean = image[item.mask].mean(axis=0) / 255
                    hue = colorsys.rgb_to_hsv(*mean)[0]
                    distances.append(abs((hue - look.hue + 0.5) % 1 - 0.5))
        assert len(distances) >= 5
        assert max(distances) < 4 * 0.04
        assert np.mean(distances) < 1.5 * 0.04


class TestScene:
    def test_image_depends_on_seed_split_and_index_only(self, compose):
        image, objects = compose(5, "train", 7)
        compose(5, "train", 8)
        again, same = compose(5, "train", 7)
        np.testing.assert_array_equal(image, again)
        assert [o.category_id for o in objects] == [o.category_id for o in same]
        for a, b in zip(objects, same, strict=True):
            np.testing.assert_array_equal(a.mask, b.mask)
        for other in ((6, "train", 7), (5, "val", 7), (5, "train", 8)):
            assert not np.array_equal(image, compose(*other)[0])

    def test_image_form(self, scenes):
        for image, objects in scenes[:5]:
            assert image.shape == (128, 128, 3)
            assert image.dtype == np.uint8
            for item in objects:
                assert item.mask.shape == (128, 128)
                assert item.mask.dtype == bool
                assert 1 <= item.category_id <= 20

    def test_masks_are_disjoint(self, scenes):
        for _, objects in scenes:
            assert np.sum([item.mask for item in objects], axis=0).max() == 1

    def test_objects_are_at_least_half_visible(self, scenes):
        shares = [o.mask.sum() / o.full_area for _, objects in scenes for o in objects]
        assert min(shares) >= 0.5
        assert min(shares) < 0.6  # there is real occlusion
        assert max(shares) == 1

    def test_every_category_occurs(self, scenes):
        assert {o.category_id for _, objects in scenes for o in objects} == set(range(1, 21))

    def test_both_sides_are_equally_hard(self, scenes):
        """IoU of the whole box with the mask, mean of category means: about 53 on both sides."""
        ratios = {category: [] for category in range(1, 21)}
        for _, objects in scenes:
            for item in objects:
                x, y, width, height = cv2.boundingRect(item.mask.astype(np.uint8))
                ratios[item.category_id].append(item.mask.sum() / (width * height))
        means = [100 * np.mean(ratios[category]) for category in range(1, 21)]
        assert np.mean(means[:10]) == pytest.approx(53, abs=4)
        assert np.mean(means[10:]) == pytest.approx(53, abs=4)
        assert np.mean([len(objects) for _, objects in scenes]) == pytest.approx(4.5, abs=0.5)


class TestParts:
    """The second edition."""

    def test_coordinates_undo_the_placement(self):
        pose = shapes_scene.Pose((60.3, 41.8), 23.0, 0.4, 1.1, True)
        x, y = shapes_parts.object_coordinates(pose, 128)
        points = np.array([[x[30, 70], y[30, 70]], [x[80, 20], y[80, 20]]])
        placed = shapes_drawing.place_outline(
            [points], pose.center, pose.radius, pose.rotation, pose.stretch, pose.flip
        )
        np.testing.assert_allclose(placed[0], [[70.5, 30.5], [20.5, 80.5]])

    @pytest.mark.parametrize(
        ("layout", "expected"),
        [
            ("bands", [2, 2, 0, 1, 1, 0, 0]),
            ("shells", [1, 0, 2, 0, 1, 0, 0]),
            ("sides", [1, 1, 1, 1, 1, 2, 0]),
            ("spots", [0, 2, 0, 1, 0, 0, 0]),
        ],
    )
    def test_layouts(self, layout, expected):
        """Along the axis of the layout from one end to the other, then right and left of it."""
        angle = 0.7
        u = np.array([-1, -0.5, 0, 0.5, 1, 0, 0])
        v = np.array([0, 0, 0, 0, 0, 0.6, -0.6])
        x, y = np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v
        assert shapes_parts.part_map(layout, angle, x, y).tolist() == expected

    def test_parts_of_a_category_stay_on_its_side_of_the_hues(self):
        for number, entry in enumerate(shapes_parts.catalog()):
            for look in entry.looks:
                assert round(look.hue * 20) % 2 == number // 10

    def test_objects_wear_the_looks_of_their_parts(self):
        """The disk's parts, each in the hue that the catalog has for it."""
        number = shapes_scene.SHAPE_NAMES.index("disk")
        entry = shapes_parts.catalog()[number]
        image, mask = shapes_parts.render_category("disk", 64)
        pose = shapes_scene.Pose((32, 32), 0.46 * 64, 0, 1, False)
        x, y = shapes_parts.object_coordinates(pose, 64)
        parts = shapes_parts.part_map(entry.layout, entry.angle, x, y)
        for part, look in enumerate(entry.looks):
            pixels = image[mask & (parts == part)] / 255
            hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels])
            first = np.abs((hues - look.hue + 0.5) % 1 - 0.5)
            second = np.abs((hues - look.second_hue + 0.5) % 1 - 0.5)
            # The shift of a specimen is the same for both colors; gradients pass between them.
            assert len(pixels) > 50
            if look.kind != "gradient":
                assert np.minimum(first, second).max() < 4 * 0.04

    def test_written_with_a_third_split(self, tmp_path):
        generate(str(tmp_path / "a"), 2, 1, seed=4, version="2")
        for split, size in (("train", 2), ("val", 1), ("test", 1)):
            content = read_json(tmp_path / "a", split)
            assert content["info"]["version"] == "2"
            assert len(content["images"]) == size
            written = cv2.imread(str(tmp_path / "a" / split / "000001.png"))[:, :, ::-1]
            np.testing.assert_array_equal(written, shapes_parts.compose_image(4, split, 0)[0])
        with pytest.raises(UserError, match="version 2 instead of 1"):
            generate(str(tmp_path / "a"), 2, 1, seed=4)
        whole = read_files(tmp_path / "a")
        os.remove(json_path(str(tmp_path / "a"), "test"))
        prepare(str(tmp_path / "a"), version="2")
        assert read_files(tmp_path / "a") == whole


@pytest.mark.parametrize(
    ("version", "split", "annotations", "color"),
    [
        ("1", "train", "12c354a90c044cfb", [98.53, 96.15, 130.26]),
        ("1", "val", "bab9c33ee08847be", [107.44, 120.38, 114.1]),
        ("2", "train", "731d5f1f7df63017", [133.82, 82.2, 132.42]),
        ("2", "val", "758e04ac54591111", [89.97, 138.17, 106.26]),
        ("2", "test", "1a99e0f4c6689dfb", [133.08, 90.54, 115.05]),
    ],
)
def test_a_seed_gives_the_same_data_for_ever(version, split, annotations, color):
    """Masks exactly; colors up to what another machine's sine may round differently."""
    found = [partial_shapes.encode_image(0, split, index, version)[2] for index in range(3)]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == annotations
    image, _ = partial_shapes.EDITIONS[version].compose_image(0, split, 0)
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), color, atol=0.1)


class TestFiles:
    def test_content(self, small):
        content = read_json(small, "train")
        assert content["info"]["seed"] == 3
        assert content["info"]["version"] == partial_shapes.VERSION
        assert [c["id"] for c in content["categories"]] == list(range(1, 21))
        assert [c["name"] for c in content["categories"]] == list(shapes_scene.SHAPE_NAMES)
        assert len(content["images"]) == 6
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        names = {f"train/{image['file_name']}" for image in content["images"]}
        names |= {f"val/{image['file_name']}" for image in read_json(small, "val")["images"]}
        names |= {f"annotations/instances_{split}.json" for split in ("train", "val")}
        assert set(read_files(small)) == names

    def test_annotations_are_what_is_drawn(self, small):
        content = read_json(small, "train")
        for index, record in enumerate(content["images"]):
            image, objects = shapes_scene.compose_image(3, "train", index)
            written = cv2.imread(str(small / "train" / record["file_name"]))[:, :, ::-1]
            np.testing.assert_array_equal(written, image)
            mine = [a for a in content["annotations"] if a["image_id"] == record["id"]]
            assert [a["category_id"] for a in mine] == [item.category_id for item in objects]
            for annotation, item in zip(mine, objects, strict=True):
                mask = item.mask
                decoded = coco_mask.decode(annotation["segmentation"]).astype(bool)
                np.testing.assert_array_equal(decoded, mask)
                ys, xs = np.nonzero(mask)
                width, height = np.ptp(xs) + 1, np.ptp(ys) + 1
                assert annotation["bbox"] == [xs.min(), ys.min(), width, height]
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == 0

    def test_same_bytes_with_other_workers_and_sizes(self, small, tmp_path):
        generate(str(tmp_path / "same"), 6, 2, seed=3, workers=2)
        expected = read_files(small)
        assert read_files(tmp_path / "same") == expected
        generate(str(tmp_path / "fewer"), 4, 1, seed=3)
        fewer = read_files(tmp_path / "fewer")
        for name in fewer:
            if name.endswith(".png"):
                assert fewer[name] == expected[name]
        annotations = read_json(tmp_path / "fewer", "train")["annotations"]
        assert annotations == read_json(small, "train")["annotations"][: len(annotations)]

    def test_interrupted_generation_leaves_nothing(self, tmp_path, monkeypatch):
        real = partial_shapes.encode_image

        def stop_at_the_third(seed, split, index, version):
            if index == 2:
                assert any(tmp_path.iterdir())  # something is being written
                raise KeyboardInterrupt
            return real(seed, split, index, version)

        monkeypatch.setattr(partial_shapes, "encode_image", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            generate(str(tmp_path / "shapes"), 4, 1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("other_seed", [3, 4])
    def test_race_of_two_processes(self, small, tmp_path, monkeypatch, other_seed):
        folder = tmp_path / "shapes"
        real = partial_shapes.encode_image

        def let_another_finish_first(seed, split, index, version):
            monkeypatch.setattr(partial_shapes, "encode_image", real)
            generate(str(folder), 6, 2, seed=other_seed)
            return real(seed, split, index, version)

        monkeypatch.setattr(partial_shapes, "encode_image", let_another_finish_first)
        if other_seed == 3:
            generate(str(folder), 6, 2, seed=3)
            assert read_files(folder) == read_files(small)
        else:
            with pytest.raises(UserError, match="seed 4 instead of 3"):
                generate(str(folder), 6, 2, seed=3)
        assert list(tmp_path.iterdir()) == [folder]

    def test_two_processes_at_once_both_end_well(self, small, tmp_path):
        def run(barrier):
            barrier.wait(60)
            generate(str(tmp_path / "shapes"), 6, 2, seed=3, progress=False)

        two_at_once(run)
        assert read_files(tmp_path / "shapes") == read_files(small)
        assert list(tmp_path.iterdir()) == [tmp_path / "shapes"]

    def test_same_data_set_is_left_alone(self, small):
        before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
        generate(str(small), 6, 2, seed=3)
        assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before

    def test_other_content_is_refused(self, small, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="something else than PartialShapes"):
            generate(str(tmp_path), 1, 1)
        assert read_files(tmp_path) == {"notes.txt": b"mine"}
        with pytest.raises(UserError, match="seed 3 instead of 0"):
            generate(str(small), 6, 2, seed=0)
        with pytest.raises(UserError, match="num_train 6 instead of 7"):
            generate(str(small), 7, 2, seed=3)

    def test_empty_folder_is_filled(self, tmp_path):
        generate(str(tmp_path), 1, 1)
        assert len(read_json(tmp_path, "train")["images"]) == 1

    @pytest.mark.parametrize(
        "arguments", [{"num_train": 0}, {"num_val": 0}, {"seed": -1}, {"workers": -1}]
    )
    def test_numbers_out_of_range(self, tmp_path, arguments):
        with pytest.raises(UserError, match="must be at least"):
            generate(str(tmp_path / "shapes"), **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="Cannot write PartialShapes"):
            generate(str(tmp_path / "file" / "shapes"), 1, 1)


@pytest.fixture
def registered(tmp_path):
    """The two data sets under a root of the test's own; the registration is put back later."""
    names = [
        f"{base}_{split}"
        for base, (_, splits) in builtin.PARTIAL_SHAPES.items()
        for split in splits
    ]
    before = os.path.dirname(
        os.path.dirname(os.path.dirname(MetadataCatalog.get(names[0]).json_file))
    )
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    builtin.register_partial_shapes(str(tmp_path))
    yield tmp_path
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    builtin.register_partial_shapes(os.path.dirname(before))


class TestRegistration:
    def test_metadata(self, registered):
        builtin.register_partial_shapes("elsewhere")  # the names are taken: nothing changes
        for base, split in (
            ("partial_shapes", "train"),
            ("partial_shapes", "val"),
            ("partial_shapes_2", "test"),
        ):
            metadata = MetadataCatalog.get(f"{base}_{split}")
            folder = registered / base
            assert metadata.json_file == str(folder / "annotations" / f"instances_{split}.json")
            assert metadata.image_root == str(folder / split)
            assert metadata.evaluator_type == "coco"
            assert tuple(metadata.thing_classes) == shapes_scene.SHAPE_NAMES
            assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(20)}

    def test_loading_generates_what_is_missing(self, registered, monkeypatch):
        monkeypatch.setattr(partial_shapes.prepare, "__defaults__", (2, 1, "1"))
        dicts = DatasetCatalog.get("partial_shapes_train")
        assert len(dicts) == 2
        content = read_json(registered / "partial_shapes", "train")
        expected = [a["category_id"] - 1 for a in content["annotations"]]
        assert [a["category_id"] for d in dicts for a in d["annotations"]] == expected
        for record in dicts:
            assert os.path.isfile(record["file_name"])
        monkeypatch.setattr(partial_shapes, "generate", None)  # nothing is left to do
        MetadataCatalog.get("partial_shapes_val").psis_prepare()
        assert len(DatasetCatalog.get("partial_shapes_val")) == 1


class TestCommandLine:
    def test_writes_data_and_preview(self, tmp_path, capsys):
        out, picture = tmp_path / "shapes", tmp_path / "look.png"
        arguments = ["--out", str(out), "--train", "2", "--val", "1", "--seed", "9"]
        partial_shapes.main([*arguments, "--preview", str(picture)])
        assert read_json(out, "train")["info"]["seed"] == 9
        image = cv2.imread(str(picture))
        assert image.shape[1] >= 8 * 128
        assert str(picture) in capsys.readouterr().out

    def test_bad_input_is_one_sentence(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            partial_shapes.main(["--out", str(tmp_path / "shapes"), "--train", "-1"])
        assert stop.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1] == "error: The number of training images is -1, but it must be at least 1."
