"""What autolabel writes opens in CVAT (through datumaro) and in Label Studio."""

import psis_d2
from psis_d2.inference.autolabel import Labeling, autolabel

import pytest

from saved_models import save_model
from tiny_data import write_tiny_data


@pytest.mark.slow
@pytest.mark.parametrize("polygons", [None, 1.0], ids=["rle", "polygons"])
def test_labeling_tools_read_every_mask(labeling_tools, polygons, tmp_path):
    data = write_tiny_data(tmp_path / "data", images=6)
    predictor = psis_d2.Predictor(save_model(tmp_path), device="cpu")
    out = str(tmp_path / "labeled.json")
    labeling = Labeling(only_missing=False, polygons=polygons)
    autolabel(predictor, data["images"], out, boxes=data["json"], labeling=labeling)
    found = labeling_tools(out, data["images"])
    kind = "polygon" if polygons else "mask"
    assert found["datumaro"] == {"images": 6, "bbox": 12, kind: 12}
    if polygons:
        assert found["label studio"]["polygonlabels"] == 12
