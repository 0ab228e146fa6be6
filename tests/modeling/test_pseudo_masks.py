"""The student's targets, pixel by pixel."""

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.pseudo_masks import PseudoMasks, trust_in

import pytest
import torch

from model_builders import tiny_config

# One row of six pixels: the box is the first five, another seen object covers the second and third.
TEACHER = torch.tensor([[[0.9, 0.9, 0.4, 0.3, 0.5, 0.9]]])
STUDENT = torch.tensor([[[0.0, 0.9, 0.9, 0.9, 0.5, 0.9]]])
INSIDE = torch.tensor([[[True, True, True, True, True, False]]])
SEEN = torch.tensor([[[False, True, True, False, False, False]]])


@pytest.mark.parametrize(
    ("kind", "cleaning", "expected"),
    [
        ("threshold", True, [1, 0, 0, 0, 1, 0]),
        ("crf", True, [1, 0, 0, 0, 1, 0]),
        ("interaction", True, [0, 0, 0, 1, 1, 0]),
        ("threshold", False, [1, 1, 0, 0, 1, 1]),
        ("interaction", False, [0, 1, 1, 1, 1, 1]),
    ],
)
def test_every_pixel(kind, cleaning, expected):
    teacher, student = (x.clone().requires_grad_() for x in (TEACHER, STUDENT))
    found = PseudoMasks(kind, cleaning=cleaning)(teacher, student, INSIDE, SEEN)
    assert found.dtype == torch.bool
    assert found.flatten().int().tolist() == expected
    assert not found.requires_grad


def test_the_threshold_is_asked():
    found = PseudoMasks("threshold", threshold=0.6, cleaning=False)(TEACHER, STUDENT)
    assert found.flatten().int().tolist() == [1, 1, 0, 0, 0, 1]


def test_the_crf_decides_by_color():
    """Two colors, each with one voice for all of its pixels; positions have none."""
    make = PseudoMasks(
        "crf", crf={"gaussian_weight": 0.0, "bilateral_sigma": 1e4, "bilateral_weight": 20.0}
    )
    assert make.uses_colors
    colors = torch.tensor([0.0, 0, 0, 200, 200, 200]).expand(1, 3, 1, 6)
    sharp = make.sharpen(TEACHER, colors)
    # means .73 and .57 of three pixels each: both are foreground
    assert (sharp > 0.9).all()
    sharp = make.sharpen(TEACHER - 0.2, colors)  # .53 and .37
    assert (sharp[..., :3] > 0.5).all()
    assert (sharp[..., 3:] < 0.5).all()


def test_settings_are_those_of_the_config():
    key = "PSIS.TEACHER_STUDENT"
    keys = (f"{key}.POSTPROCESS", "crf", f"{key}.THRESHOLD", 0.3, f"{key}.CLEANING", False)
    made = PseudoMasks.from_config(tiny_config(*keys, f"{key}.CRF_STEPS", 2))
    assert (made.kind, made.threshold, made.cleaning) == ("crf", 0.3, False)
    assert made.crf == {**PseudoMasks.from_config(tiny_config()).crf, "steps": 2}
    made.sharpen(TEACHER, torch.zeros(1, 3, 1, 6))  # these are settings of the CRF
    with pytest.raises(UserError, match="POSTPROCESS is 'none'; choose one of thresh.*, crf"):
        PseudoMasks("none")


def test_trust_by_hand():
    probability = torch.tensor([[[0.9, 0.6], [0.5, 0.2]], [[0.1, 0.2], [0.3, 0.7]]])
    masks = torch.tensor([[[1.0, 1], [1, 0]], [[0, 0], [0, 0]]])  # the last .7 is cleaned away
    assert torch.equal(trust_in("equal", probability, masks), torch.ones(2, 2, 2))
    cells = torch.tensor([[[0.8, 0.2], [0, 0.6]], [[0.8, 0.6], [0.4, 1]]])
    torch.testing.assert_close(trust_in("cells", probability, masks), cells)
    by_mask = torch.tensor([2 / 3, 0])[:, None, None].expand(2, 2, 2)
    torch.testing.assert_close(trust_in("masks", probability, masks), by_mask)
