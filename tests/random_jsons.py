"""Random annotation files: plain ones of which a few values are replaced by others of all kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
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


def settings(examples):
    """Hypothesis's settings for so many examples, the same ones every time."""
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def write_images(folder: Path) -> None:
    """The image that all the files are about, as ``FOLDER/images/a.png``."""
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / FILE)


def write_data(path: Path, data) -> None:
    """Write anything as a json, not-a-number and lone surrogates too."""
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        json.dump(data, file)
