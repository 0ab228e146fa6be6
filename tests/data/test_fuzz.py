"""Random annotation files are read and mapped, or refused in one sentence; nothing is written.

The jsons are plain ones of which a few values are replaced by others of all types and sizes.
"""

import json
import os
import uuid
from pathlib import Path

from psis_d2.data.coco import load_coco
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

WIDTH, HEIGHT = 24, 16
FILE = "a.png"
TRICKS = (
    *("../a.png", "/etc/passwd", "/dev/null", "a.png\0", "", ".", "..", "a" * 5000, "//a.png"),
    *(
        "http://localhost/a.png",
        "file:///a.png",
        "C:\\a.png",
        "a.png/",
        "\ud800.png",
        "sub/../a.png",
    ),
)

numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, -1, 1e9, 1e-9, 1e308, 2**31, 2**53 + 1, 2**63, 10**40, 0.5, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4), st.sampled_from(TRICKS))
flags = st.sampled_from(["0", "1", "true", "FALSE", 0, 1, 2, None, True, "x"])
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
points = st.lists(st.one_of(st.floats(-5, 40), numbers), max_size=10)
segmentations = st.one_of(
    st.lists(points, max_size=3),
    points,
    st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=5),
    st.fixed_dictionaries(
        {
            "size": st.sampled_from(
                [[HEIGHT, WIDTH], [WIDTH, HEIGHT], [0, 0], [2**31, 2**31], None]
            ),
            "counts": st.one_of(
                st.lists(st.integers(-1, HEIGHT * WIDTH), max_size=5),
                st.text("0123456789`abcdZ\\oPQ", max_size=12),
                st.just([0, HEIGHT * WIDTH]),
            ),
        }
    ),
    anything,
)
boxes = st.one_of(st.lists(st.floats(-5, 30), min_size=4, max_size=4), st.lists(numbers), anything)
VALUES = {
    **{"bbox": boxes, "segmentation": segmentations, "iscrowd": flags, "ignore": flags},
    **{"box_only": flags, "file_name": st.sampled_from([FILE, *TRICKS])},
}


def plain():
    """Two images, three annotations, two categories."""
    images = [
        {"id": i, "file_name": FILE, "height": HEIGHT, "width": WIDTH, "box_only": 0}
        for i in (1, 2)
    ]
    annotations = [
        {
            **{"id": i, "image_id": 1 + i % 2, "category_id": 3 + i % 2, "iscrowd": 0, "area": 9},
            **{"bbox": [2, 3, 8, 7], "segmentation": [[2, 3, 10, 3, 10, 10, 2, 10]], "ignore": 0},
        }
        for i in range(3)
    ]
    categories = [{"id": 3, "name": "cup"}, {"id": 4, "name": "hat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@st.composite
def jsons(draw):
    """A plain json with up to three changes; in one of twenty, anything in its place."""
    if draw(st.integers(0, 19)) == 0:
        return draw(anything)
    data = plain()
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(["images", "annotations", "annotations", "categories"]))
        if draw(st.integers(0, 14)) == 0:
            data[part] = draw(anything)
        if not isinstance(data[part], list) or not data[part]:
            continue
        entry = draw(st.sampled_from(data[part]))
        if not isinstance(entry, dict) or not entry:
            continue
        key = draw(st.sampled_from(sorted(entry)))
        if draw(st.integers(0, 9)) == 0:
            del entry[key]
        else:
            entry[key] = draw(st.one_of(VALUES.get(key, anything), VALUES.get(key, scalars)))
    return data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one image, and a place for jsons beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / FILE)
    return folder


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))


def read_and_map(place, data):
    """Read a json and map its images; True, or False where a sentence refused it."""
    path = place / "data.json"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        json.dump(data, file)
    before = listing(place)
    name = f"fuzz {uuid.uuid4()}"
    try:
        records = load_coco(str(path), str(place / "images"), name)
        for record in records:
            json.dumps(record)
            for annotation in record["annotations"]:
                assert -(2**63) <= annotation["id"] < 2**63
                assert 0 <= annotation["category_id"] < len(MetadataCatalog.get(name).thing_classes)
            options = {"augmentations": [], "image_format": "BGR"}
            for mapper in (
                PartialMaskMapper(is_train=True, **options),
                PartialMaskMapper(is_train=False, with_boxes=True, **options),
            ):
                sample = mapper(record)
                assert sample["instances"].gt_boxes.tensor.isfinite().all()
        return True
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 12_000
        return False
    finally:
        MetadataCatalog.pop(name, None)
        assert listing(place) == before
        os.remove(path)


def test_the_plain_json_is_read(place):
    assert read_and_map(place, plain())


def settings(examples):
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@settings(200)
@hypothesis.given(data=jsons())
def test_any_json_is_read_or_refused_in_a_sentence(place, data):
    read_and_map(place, data)


@pytest.mark.faults
@settings(10_000)
@hypothesis.given(data=jsons())
def test_ten_thousand_jsons_are_read_or_refused_in_a_sentence(place, data):
    read_and_map(place, data)
