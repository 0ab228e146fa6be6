"""Stage-wise training: one part of a model learns, the rest stays as it is, bit for bit.

The second stage of "Learning to Segment Every Thing" (Hu et al., CVPR 2018, sec. 3.2) trains the
mask head on a detector that is done. A frozen module is in eval mode, so that it neither draws
random numbers nor updates statistics, and computes no loss: the RPN proposes what it proposes at
test time, as the released code's precomputed proposals are made.
"""

from collections.abc import Iterator

from psis_d2.errors import UserError

from detectron2.engine import HookBase
from torch import nn

PARTS = {"mask_head": "roi_heads.mask_head"}


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


class KeepFrozen(HookBase):
    """Puts modules back in eval mode before every iteration; evaluation sets the whole model."""

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules

    def before_step(self):
        for module in self.modules:
            module.eval()
