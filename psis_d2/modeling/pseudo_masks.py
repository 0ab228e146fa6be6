"""Masks that a teacher gives its student where there is no annotation (Teacher-Student heads)."""

from psis_d2.errors import check_choice

import torch
from torch import Tensor

PSEUDO_MASKS = ("threshold", "interaction")


@torch.no_grad()
def pseudo_masks(
    teacher_prob: Tensor,
    student_prob: Tensor | None,
    inside_box: Tensor,
    seen_masks: Tensor,
    mode: str,
) -> Tensor:
    """Eq. 4's sigma and the cleaning of sec. 5.

    Args:
        teacher_prob: float [N, H, W], M_t.
        student_prob: float [N, H, W], M_s, the channel of the instance's class; for "interaction".
        inside_box: bool [N, H, W], the instance's annotated box; all else is background.
        seen_masks: bool [N, H, W], annotated masks of other objects of the image; they are
            background, too.
        mode: "threshold", M_t >= 0.5, or "interaction", (M_t + M_s) / 2 >= 0.5.

    Returns:
        bool [N, H, W], without gradient.
    """
    check_choice("mode", mode, PSEUDO_MASKS)
    probability = teacher_prob
    if mode == "interaction":
        probability = (teacher_prob + student_prob) / 2
    return (probability >= 0.5) & inside_box & ~seen_masks
