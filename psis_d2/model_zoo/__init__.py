"""Configs and trained models by name, with the functions of ``detectron2.model_zoo``."""

from psis_d2.model_zoo.configs import config_names, find_config_file, get_config_file

__all__ = ["config_names", "find_config_file", "get_config_file"]
