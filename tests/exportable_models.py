"""Random models whose outputs say something: scores that differ, masks that vary."""

from dataclasses import replace
from pathlib import Path

from psis_d2.export import load_for_export
from psis_d2.export.trace import TraceableModel
from psis_d2.inference import Predictor

import torch
from torch import Tensor

from model_builders import write_priors
from saved_models import save_model

SIZES = ((96, 128), (128, 96), (70, 150), (131, 87), (64, 64))


def pictures(sizes=SIZES, seed: int = 0) -> list[Tensor]:
    """Noise, uint8 [3, H, W] each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]


def random_predictor(folder: Path, config: str, *overrides) -> Predictor:
    """A model of a config with weights of a seed, written to a file and read from it.

    Args:
        folder: of its files.
        config: a file of ``configs/``, without its suffix.
        *overrides: KEY, VALUE, ... of the config.
    """
    priors = write_priors(str(folder / "priors.npz"), 3)
    few = ("PSIS.SHAPEMASK.NUM_PRIORS", 3, "PSIS.SHAPEMASK.PRIORS", priors, "MODEL.WEIGHTS", "")
    few += ("TEST.DETECTIONS_PER_IMAGE", 40, *overrides)
    weights = save_model(folder, *few, config=f"{config}.yaml", marks_all=False)
    predictor = load_for_export(weights)
    spread(predictor.model)
    return predictor


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Enlarge the last layers, which start near zero, and tame a deep backbone.

    Frozen batch norm of no data lets each of its blocks add as much as there was.
    """
    for name, value in model.backbone.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            value.mul_(0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "bbox_pred.weight", "controller.conv.weight")):
            parameter.mul_(10)
    head = getattr(getattr(model, "roi_heads", None), "mask_head", None)
    head = getattr(head, "student", head)
    if hasattr(head, "predictor"):
        list(head.predictor)[-1].weight.mul_(100)


def set_threshold(model: torch.nn.Module, score: float) -> None:
    """Let the model drop all objects up to a score."""
    generator = model.proposal_generator
    if hasattr(generator, "test_selection"):
        generator.test_selection = replace(generator.test_selection, score_thresh=score)
    else:
        model.roi_heads.box_predictor.test_score_thresh = score


@torch.no_grad()
def outputs(model: torch.nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What the model itself gives, by name."""
    traceable = TraceableModel(model).eval()
    values = traceable(image)
    return dict(zip(traceable.output_names, values, strict=True))


def leave_one_empty(model: torch.nn.Module, images: list[Tensor]) -> list[Tensor]:
    """Raise the score threshold until one of the images shows no object.

    Returns:
        The images, the one with the surest object first.
    """
    set_threshold(model, 0.0)
    tops = [outputs(model, image)["scores"].max().item() for image in images]
    low, high = min(tops), 1.0
    threshold = low + 1e-3  # no rounding brings the least of them above it
    for _ in range(20):  # FCOS compares class probabilities, which may be above all scores
        set_threshold(model, threshold)
        counts = [len(outputs(model, image)["scores"]) for image in images]
        if min(counts) == 0 < max(counts):
            break
        low, high = (threshold, high) if min(counts) else (low, threshold)
        threshold = (low + high) / 2
    first = tops.index(max(tops))
    return [images[first], *images[:first], *images[first + 1 :]]
