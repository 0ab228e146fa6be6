"""Configs and trained models by name, with the functions of ``detectron2.model_zoo``.

    from psis_d2 import model_zoo
    cfg = model_zoo.get_config("shapeprop_R50")
    model = model_zoo.get("shapeprop_R50", trained=True)

``psis_d2://NAME`` is a model's address for ``MODEL.WEIGHTS``. `configs` finds configs, `catalog`
models, `download` fetches and checks, `checkpoints` builds on them, `weights` reads and writes
files, `publish` makes new ones.
"""

from psis_d2.model_zoo.catalog import Model, find_model, models
from psis_d2.model_zoo.checkpoints import get, get_checkpoint_url, get_config, local_path
from psis_d2.model_zoo.configs import config_names, find_config_file, get_config_file

__all__ = [
    "Model",
    "config_names",
    "find_config_file",
    "find_model",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "local_path",
    "models",
]
