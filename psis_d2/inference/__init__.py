"""From a trained model and pictures to masks: the Predictor, ``predict`` and ``autolabel``."""

from psis_d2.inference.autolabel import autolabel
from psis_d2.inference.predict import predict
from psis_d2.inference.predictor import Predictor

__all__ = ["Predictor", "autolabel", "predict"]
