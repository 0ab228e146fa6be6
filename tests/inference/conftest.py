"""One small model for all tests of what people do with a trained one."""

import psis_d2

import pytest

from saved_models import save_model


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A checkpoint of :func:`saved_models.save_model`."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(weights) -> psis_d2.Predictor:
    """The same model, loaded."""
    return psis_d2.Predictor(weights, device="cpu")
