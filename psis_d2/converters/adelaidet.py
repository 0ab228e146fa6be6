"""AdelaiDet's CondInst and BoxInst (aim-uofa/AdelaiDet, names read in its code).

Its filters see coordinates from a cell to the location, ours from the location to the cell: the
controller's rows of the first layer's coordinate weights change their sign. Its masks are made on
grids of their own, ``PSIS.CONDINST.RELEASED_GRIDS``.
"""

import re

from psis_d2.converters.rules import Rule, Source
from psis_d2.modeling.condinst.dynamic_filters import DynamicLayers

import torch
from torch import Tensor

_HEAD = "proposal_generator.head"
_LAYERS = {"cls_logits": "cls_score", "bbox_pred": "bbox_pred", "ctrness": "centerness"}
# In a block of convolution and norm the two are numbered, in Detectron2's they are one.
_PARTS = {"0": "", "1": "norm."}


def _branch(match: re.Match) -> str:
    tower, layer, part, what = match.groups()
    inner = "0." if tower == "refine" else ""  # a tower of its own, of one layer
    return f"mask_head.branch.{tower}.{layer}.{inner}{_PARTS[part]}{what}"


def finish(state: dict[str, Tensor], cfg) -> dict[str, Tensor]:
    """Gather the levels' scales, and turn the coordinates around."""
    scales = sorted(
        (name for name in state if name.startswith(f"{_HEAD}.scales.")),
        key=lambda name: int(name.rpartition(".")[2]),
    )
    if scales:
        state[f"{_HEAD}.scales"] = torch.cat([state.pop(name).flatten() for name in scales])
    node = cfg.PSIS.CONDINST
    layers = DynamicLayers(features=node.CHANNELS, dim=node.HEAD_DIM, depth=node.HEAD_LAYERS)
    out, into = layers.shapes[0]
    rows = (torch.arange(out)[:, None] * into + torch.arange(2)).flatten()
    for name in ("mask_head.controller.conv.weight", "mask_head.controller.conv.bias"):
        if name in state and len(state[name]) == layers.num_params:
            state[name] = state[name].clone()
            state[name][rows] *= -1
    return state


ADELAIDET = Source(
    rules=(
        Rule(r"backbone\..*", r"\g<0>"),
        Rule(r"proposal_generator\.fcos_head\.(cls|bbox)_tower\.(.*)", rf"{_HEAD}.\1_subnet.\2"),
        Rule(
            r"proposal_generator\.fcos_head\.(cls_logits|bbox_pred|ctrness)\.(.*)",
            lambda match: f"{_HEAD}.{_LAYERS[match[1]]}.{match[2]}",
        ),
        Rule(r"proposal_generator\.fcos_head\.scales\.(\d+)\.scale", rf"{_HEAD}.scales.\1"),
        Rule(r"controller\.(.*)", r"mask_head.controller.conv.\1"),
        Rule(r"mask_branch\.(refine|tower)\.(\d+)\.([01])\.(\w+)", _branch),
        Rule(r"mask_branch\.tower\.\d+\.(weight|bias)", r"mask_head.branch.project.\1"),
        # Of training alone: semantic segmentation beside the masks, and a counter.
        Rule(r"mask_branch\.(seg_head|logits)\..*", None),
        Rule(r"mask_head\.(_iter|sizes_of_interest)|pixel_(mean|std)", None),
    ),
    finish=finish,
    options=("PSIS.CONDINST.RELEASED_GRIDS", "True"),
)
