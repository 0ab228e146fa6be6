"""Stage-wise training: one part of a model learns, the rest stays as it is, bit for bit.

The second stage of "Learning to Segment Every Thing" (Hu et al., CVPR 2018, sec. 3.2) trains the
mask head on a detector that is done. A frozen module is in eval mode, so that it neither draws
random numbers nor updates statistics, and computes no loss: the RPN proposes what it proposes at
test time, as the released code's precomputed proposals are made.
"""

from collections.abc import Iterator

from psis_d2.errors import UserError

from detectron2.engine import HookBase
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from torch import nn

PARTS = {"mask_head": "roi_heads.mask_head", "mask_branch": "roi_heads.mask_head"}
"""What may learn alone, and its module that a detector has no weights for. The mask branch is the
mask head and the layers of the FPN between it and the backbone."""


def train_only(model: nn.Module, part: str) -> "KeepFrozen":
    """Freeze all parameters of a model but those of one part, in place.

    Call it before the optimizer is built and before the model is wrapped for several processes:
    both leave frozen parameters out.

    Args:
        model: a Detectron2 meta-architecture.
        part: a key of ``PARTS``.

    Returns:
        The hook that keeps the frozen modules in eval mode.

    Raises:
        UserError: the part is unknown or the model has none.
    """
    if part not in PARTS:
        raise UserError(
            f"PSIS.TRAIN_ONLY is '{part}'; choose one of {', '.join(PARTS)}, or '' for everything."
        )
    frozen = list(_beside(model, PARTS[part].split(".")))
    if part == "mask_branch":
        if not hasattr(model.backbone, "bottom_up"):
            raise UserError(
                f"PSIS.TRAIN_ONLY {part} trains an FPN, and {type(model.backbone).__name__} is "
                "none; set PSIS.TRAIN_ONLY mask_head."
            )
        frozen = [model.backbone.bottom_up if m is model.backbone else m for m in frozen]
    for module in frozen:
        module.requires_grad_(False)
    return KeepFrozen(frozen)


def _beside(model: nn.Module, path: list[str]) -> Iterator[nn.Module]:
    """The largest modules that do not hold the module at `path`."""
    for name in path:
        children = dict(model.named_children())
        if name not in children:
            raise UserError(
                f"PSIS.TRAIN_ONLY names {'.'.join(path)}, which this model has not; set "
                "MODEL.MASK_ON True and a detector with a mask head, or PSIS.TRAIN_ONLY ''."
            )
        yield from (child for other, child in children.items() if other != name)
        model = children[name]


def frozen_backbone(model: nn.Module) -> nn.Module:
    """What of the backbone :func:`train_only` has frozen: all of it, or what is below the FPN."""
    backbone = model.backbone
    return backbone.bottom_up if any(p.requires_grad for p in backbone.parameters()) else backbone


def skip_unread_proposals(model: nn.Module) -> None:
    """Let a frozen RPN propose nothing in training where nobody reads what it proposes, in place.

    That is where the mask head trains on annotated boxes and has no use for samples of the
    background. At test time the RPN proposes as ever.
    """
    heads, generator = model.roi_heads, model.proposal_generator
    if not isinstance(generator, RPN) or heads.mask_train_boxes == "proposals":
        return
    if heads.mask_head.needs.sampled or not heads.proposal_append_gt:
        return
    propose = generator.forward

    def forward(images, features, gt_instances=None):
        if gt_instances is None:
            return propose(images, features)
        boxes, logits = (images.tensor.new_zeros(0, *shape) for shape in ((4,), ()))
        return [
            Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=logits)
            for size in images.image_sizes
        ], {}

    generator.forward = forward


class KeepFrozen(HookBase):
    """Puts modules back in eval mode before every iteration; evaluation sets the whole model."""

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules

    def before_step(self):
        for module in self.modules:
            module.eval()
