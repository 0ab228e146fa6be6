"""Fixtures of the evaluators' tests."""

import pytest

from tiny_coco import TinyCoco


@pytest.fixture
def tiny(tmp_path):
    """Makes a TinyCoco in a new folder."""
    return lambda *args, **kwargs: TinyCoco(tmp_path, *args, **kwargs)


@pytest.fixture(autouse=True)
def at_info_level(caplog):
    """The evaluators' messages reach ``caplog``."""
    caplog.set_level("INFO", logger="psis_d2.evaluation")
