#!/usr/bin/env python3
"""What does a trained ShapeProp mask head live on: its shape activation, or the RoI features?

    python tools/probe_shapeprop.py --config-file configs/quick/shapeprop_gt_shapes.yaml \
        MODEL.WEIGHTS output/quick/shapeprop_gt_shapes/model_final.pth

Evaluates masks in the annotations' boxes four times: as the model predicts them, from the shape
activation alone (above one half; compare paper Fig. 9), and with either input of the mask trunk
blanked. A head that loses nothing without the activation does not use it.
"""

import argparse
from collections.abc import Callable

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.engine import Trainer
from psis_d2.engine.setup import add_data_arguments, build_config, choose_gpus
from psis_d2.engine.trainer import build_checkpointer
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.evaluation import evaluate
from psis_d2.modeling.context import RegionContext

import torch
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import Tensor, nn


def probes(head: nn.Module) -> dict[str, Callable[[RegionContext], Tensor]]:
    """Name -> a replacement for the head's ``predict``."""

    def activation(context: RegionContext) -> Tensor:
        return head.activate_shapes(context, head.saliency(context))

    def trunk(x: Tensor, prior: Tensor) -> Tensor:
        return head.predictor(head.trunk(torch.cat([x, prior], dim=1)))

    def without_activation(context: RegionContext) -> Tensor:
        prior = head.embedding(activation(context))
        return trunk(context.features, torch.zeros_like(prior))

    def without_features(context: RegionContext) -> Tensor:
        prior = head.embedding(activation(context))
        return trunk(torch.zeros_like(context.features), prior)

    return {
        "masks as predicted": head.predict,
        "shape activation alone": activation,
        "masks, activation blanked": without_activation,
        "masks, RoI features blanked": without_features,
    }


def main() -> None:
    """Load, evaluate four times, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, MODEL.WEIGHTS too")
    args = parser.parse_args()
    args.num_gpus = choose_gpus(None)
    args.opts += ["TEST.BOXES", "gt"]
    cfg = build_config(args)
    if cfg.MODEL.ROI_MASK_HEAD.NAME != "ShapePropMaskHead":
        raise UserError(f"{args.config_file} has no ShapeProp mask head; give a config that has.")
    setup_logger(name="psis_d2").setLevel("WARNING")
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    head = model.roi_heads.mask_head
    rows = []
    for name, predict in probes(head).items():
        head.predict = predict
        results = evaluate(cfg, model)
        sides = [results.get(f"gtbox_{side}", {}) for side in ("seen", "unseen")]
        rows.append([name, *(side.get("IoU", float("nan")) for side in sides)])
    print(tabulate(rows, ["mask IoU in annotated boxes", "seen", "unseen"], floatfmt=".1f"))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
