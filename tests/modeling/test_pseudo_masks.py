"""The student's targets, pixel by pixel."""

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.pseudo_masks import pseudo_masks

import pytest
import torch

# One row of six pixels: the box is the first five, another seen object covers the second and third.
TEACHER = torch.tensor([[[0.9, 0.9, 0.4, 0.3, 0.5, 0.9]]])
STUDENT = torch.tensor([[[0.0, 0.9, 0.9, 0.9, 0.5, 0.9]]])
INSIDE = torch.tensor([[[True, True, True, True, True, False]]])
SEEN = torch.tensor([[[False, True, True, False, False, False]]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("threshold", [1, 0, 0, 0, 1, 0]), ("interaction", [0, 0, 0, 1, 1, 0])],
)
def test_every_pixel(mode, expected):
    teacher, student = (x.clone().requires_grad_() for x in (TEACHER, STUDENT))
    found = pseudo_masks(teacher, student, INSIDE, SEEN, mode)
    assert found.dtype == torch.bool
    assert found.flatten().int().tolist() == expected
    assert not found.requires_grad


def test_threshold_needs_no_student():
    assert pseudo_masks(TEACHER, None, INSIDE, SEEN, "threshold").any()
    with pytest.raises(UserError, match="choose one of threshold, interaction"):
        pseudo_masks(TEACHER, None, INSIDE, SEEN, "crf")
