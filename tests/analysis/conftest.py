"""Fixtures of the analyses' tests."""

import pytest

from tiny_coco import TinyCoco


@pytest.fixture
def tiny(tmp_path, catalogs):
    """Makes a TinyCoco in a new folder."""
    return lambda *args, **kwargs: TinyCoco(tmp_path, *args, **kwargs)
