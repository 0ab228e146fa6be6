"""Random annotation files are read and mapped, or refused in one sentence; nothing is written."""

import json
import os
import uuid
from pathlib import Path

from psis_d2.data.coco import load_coco
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.errors import UserError

import pytest
from detectron2.data import MetadataCatalog

from random_jsons import hypothesis, jsons, plain, settings, write_data, write_images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one image, and a place for jsons beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_images(folder)
    return folder


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))


def read_and_map(place, data):
    """Read a json and map its images; True, or False where a sentence refused it."""
    path = place / "data.json"
    write_data(path, data)
    before = listing(place)
    name = f"fuzz {uuid.uuid4()}"
    try:
        records = load_coco(str(path), str(place / "images"), name)
        for record in records:
            json.dumps(record, default=list)  # polygons are arrays
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


@settings(200)
@hypothesis.given(data=jsons())
def test_any_json_is_read_or_refused_in_a_sentence(place, data):
    read_and_map(place, data)


@pytest.mark.faults
@settings(10_000)
@hypothesis.given(data=jsons())
def test_ten_thousand_jsons_are_read_or_refused_in_a_sentence(place, data):
    read_and_map(place, data)
