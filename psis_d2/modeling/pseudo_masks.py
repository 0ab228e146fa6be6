"""Masks that a teacher gives its student where there is no annotation.

Zhao et al., "Rethinking Mask Heads", sec. 4.2 and 5. A student may be a RoI head or a part of
CondInst; ``PSIS.TEACHER_STUDENT`` has the settings of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from psis_d2.errors import check_choice
from psis_d2.ops import mean_field

import torch
from torch import Tensor

TRUSTS = ("equal", "cells", "masks")
POSTPROCESSINGS = ("threshold", "interaction", "crf")
PREDICT_WITH = ("student", "teacher")


def trust_in(kind: str, probability: Tensor, masks: Tensor) -> Tensor:
    """How much the cells of pseudo masks count in a loss.

    Args:
        kind: "equal"; "cells", each by how sure it is, |2 p - 1|, and fully where cleaning has
            decided; "masks", each mask by the mean probability of its foreground, an empty one not
            at all (as BoxTeacher rates masks: Cheng et al., CVPR 2023).
        probability: float [R, M, M], what the masks were cut from.
        masks: float [R, M, M] of 0 and 1.

    Returns:
        float [R, M, M] in [0, 1].
    """
    if kind == "equal":
        return torch.ones_like(probability)
    if kind == "cells":
        decided = (probability >= 0.5) & (masks == 0)
        return torch.where(decided, 1, (2 * probability - 1).abs())
    inside = masks.sum(dim=(1, 2), keepdim=True)
    quality = (probability * masks).sum(dim=(1, 2), keepdim=True) / inside.clamp(min=1)
    return quality.expand_as(masks)


@dataclass(frozen=True)
class PseudoMasks:
    """The post-processing of the teacher's predictions, sigma in Eq. 4 (paper sec. 4.2 and 5.1)."""

    kind: str = "interaction"
    """"threshold"; "crf", then threshold; "interaction", the mean of the teacher's probability and
    the student's of the annotated class, then threshold."""
    threshold: float = 0.5
    """Least probability of foreground."""
    cleaning: bool = True
    """Make background of what lies in a mask-annotated object of the image, or outside of the
    instance's annotated box."""
    crf: Mapping[str, float] = field(default_factory=dict)
    """Settings of :func:`psis_d2.ops.mean_field`."""

    def __post_init__(self):
        check_choice("PSIS.TEACHER_STUDENT.POSTPROCESS", self.kind, POSTPROCESSINGS)

    @classmethod
    def from_config(cls, cfg) -> "PseudoMasks":
        """The settings of ``PSIS.TEACHER_STUDENT``."""
        node = cfg.PSIS.TEACHER_STUDENT
        return cls(
            kind=node.POSTPROCESS,
            threshold=node.THRESHOLD,
            cleaning=node.CLEANING,
            crf={
                "steps": node.CRF_STEPS,
                "gaussian_weight": node.CRF_GAUSSIAN_WEIGHT,
                "gaussian_sigma": node.CRF_GAUSSIAN_SIGMA,
                "bilateral_weight": node.CRF_BILATERAL_WEIGHT,
                "bilateral_sigma": node.CRF_BILATERAL_SIGMA,
                "color_sigma": node.CRF_COLOR_SIGMA,
            },
        )

    @property
    def uses_colors(self) -> bool:
        """Whether there is a CRF, which has to see the image."""
        return self.kind == "crf"

    def sharpen(self, teacher: Tensor, colors: Tensor) -> Tensor:
        """The CRF.

        Args:
            teacher: float [N, S, S], the teacher's probability in the cells of each instance's box
                or frame.
            colors: float [N, 3, S, S], of the image there, in gray levels.

        Returns:
            float [N, S, S] in [0, 1], without a gradient.
        """
        return mean_field(teacher[:, None], colors, **self.crf)[:, 0]

    def combined(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The probability that is compared with the threshold; arguments as for the call."""
        return (teacher + student) / 2 if self.kind == "interaction" else teacher

    @torch.no_grad()
    def __call__(
        self,
        teacher: Tensor,
        student: Tensor,
        inside_box: Tensor | None = None,
        seen_masks: Tensor | None = None,
    ) -> Tensor:
        """From probabilities to masks.

        Args:
            teacher: float [N, H, W], M_t, of kind "crf" what :meth:`sharpen` made of it.
            student: float [N, H, W], M_s, the channel of the instance's class.
            inside_box: bool [N, H, W], the instance's annotated box; for `cleaning`.
            seen_masks: bool [N, H, W], annotated masks of other objects of the image; for
                `cleaning`.

        Returns:
            bool [N, H, W], without a gradient.
        """
        masks = self.combined(teacher, student) >= self.threshold
        return masks & inside_box & ~seen_masks if self.cleaning else masks
