"""Masks that a teacher gives its student where there is no annotation.

Zhao et al., "Rethinking Mask Heads", sec. 4.2 and 5.
"""

from psis_d2.errors import check_choice

import torch
from torch import Tensor

PSEUDO_MASKS = ("threshold", "interaction")


@torch.no_grad()
def pseudo_masks(
    teacher_prob: Tensor,
    student_prob: Tensor | None,
    inside_box: Tensor | None,
    seen_masks: Tensor | None,
    mode: str,
    threshold: float = 0.5,
) -> Tensor:
    """Eq. 4's sigma and the cleaning of sec. 5.

    Args:
        teacher_prob: float [N, H, W], M_t.
        student_prob: float [N, H, W], M_s, the channel of the instance's class; for "interaction".
        inside_box: bool [N, H, W], the instance's annotated box; all else is background.
        seen_masks: bool [N, H, W], annotated masks of other objects of the image; they are
            background, too. None leaves this part of the cleaning out, and so for `inside_box`.
        mode: "threshold" compares M_t, "interaction" (M_t + M_s) / 2 with the threshold.
        threshold: least probability of foreground.

    Returns:
        bool [N, H, W], without gradient.
    """
    check_choice("mode", mode, PSEUDO_MASKS)
    probability = teacher_prob
    if mode == "interaction":
        probability = (teacher_prob + student_prob) / 2
    masks = probability >= threshold
    if inside_box is not None:
        masks = masks & inside_box
    return masks if seen_masks is None else masks & ~seen_masks
