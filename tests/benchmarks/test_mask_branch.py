"""Parameters and operations of mask branches, by hand and as published (ShapeMask, Tab. 6)."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("bench_mask_branch")


def test_mask_rcnn_by_hand(bench, tmp_path):
    """Four convolutions, a transposed one and 80 masks; 2.64 million parameters are published.

    Of the masks, the one of the region's class alone is computed, which spares 16 of the published
    530 million FLOPs.
    """
    head, cells = bench.build("maskrcnn_oracle_R101", "cpu", tmp_path)
    conv, up, last = 9 * 256 * 256, 4 * 256 * 256, 256 * 80
    assert bench.count_parameters(head) == 4 * (conv + 256) + up + 256 + last + 80
    assert round(bench.count_parameters(head) / 1e6, 2) == 2.64
    flops = 14 * 14 * (4 * conv + up) + 28 * 28 * 256
    assert bench.count_flops(head, cells, "cpu") == flops
    assert round((flops + 28 * 28 * 256 * 79) / 1e6) == 530


def test_a_narrow_branch_by_hand(bench, tmp_path):
    head, cells = bench.build("shapemask_light16_R101", "cpu", tmp_path)
    convs, up = 8 * 9 * 16 * 16, 16 * 16 * 16
    assert round((convs + up) / 1e6, 2) == 0.02  # as published: no other layers
    norms, reduce, embeddings = 8 * 2 * 16, 256 * 16 + 16, 2 * (16 + 16)
    weights, predictors = 16 * 80 * 20 + 80 * 20, 2 * (16 * 80 + 80)
    total = convs + norms + up + 16 + reduce + embeddings + weights + predictors
    assert bench.count_parameters(head) == total
    row = bench.measure_config("shapemask_light16_R101", 2, "cpu", 0.0, tmp_path)
    assert (row["params (M)"], row["regions"]) == ("0.06", "2")
