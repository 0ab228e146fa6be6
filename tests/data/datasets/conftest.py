"""A small PartialShapes on disk."""

from psis_d2.data.datasets.partial_shapes import generate

import pytest


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A generated data set of six training and two validation images, seed 3."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate(str(folder), 6, 2, seed=3)
    return folder
