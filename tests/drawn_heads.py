"""A teacher and a student that predict drawings, and a scene whose every cell is known."""

import psis_d2  # noqa: F401
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.modeling.mask_heads.teacher_student import TeacherStudentMaskHead
from psis_d2.modeling.pseudo_masks import PseudoMasks

import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

SIDE = 8

# Image 0, 16 x 16 pixels; a region over all of it has cells of two pixels. U is an object without a
# mask in the box of columns 1 to 6, rows 1 to 5; S has a mask, its box is the lower right quarter;
# s is a second one, of a single cell. N, without a mask, has a mask of garbage all over the image.
TEACHER = """
9 9 9 9 9 9 9 9
9 9 9 9 9 6 6 9
9 9 9 4 4 6 6 9
9 9 9 4 4 6 1 9
9 6 6 9 9 9 9 9
9 6 6 9 9 9 9 9
9 9 9 9 9 9 9 9
9 9 9 9 9 9 9 9
"""
STUDENT = """
9 9 9 9 9 9 9 9
9 2 2 2 2 3 9 9
9 2 2 7 5 3 9 9
9 2 0 7 5 3 8 9
9 3 9 9 9 9 9 9
9 3 9 9 9 9 9 9
9 9 9 9 9 9 9 9
9 9 9 9 9 9 9 9
"""
SEEN_CELLS = """
. . . . . . . .
. . . . . . . .
. . s . . . . .
. . . . . . . .
. . . . S S S S
. . . . S S S S
. . . . S S S S
. . . . S S S S
"""
EXPECTED = {
    # 0.5 or more by the teacher, less s and S, less the cells around the box
    "threshold": """
. . . . . . . .
. # # # # # # .
. # . . . # # .
. # # . . # . .
. # # # . . . .
. # # # . . . .
. . . . . . . .
. . . . . . . .
""",
    # Ten or more by teacher and student together. 9 + 0 and 6 + 3 are too little; 4 + 7 and 6 + 9
    # are enough, and 4 + 5 and 1 + 8 are not.
    "interaction": """
. . . . . . . .
. # # # # . # .
. # . # . . # .
. # . # . . . .
. . # # . . . .
. . # # . . . .
. . . . . . . .
. . . . . . . .
""",
    # All cells of one color get the color's majority: light, where the teacher is mostly sure.
    "crf": """
. . . . . . . .
. # # # # # . .
. # . # # # . .
. # # # # # . .
. # # # . . . .
. # # # . . . .
. . . . . . . .
. . . . . . . .
""",
}
DARK = """
. . . . . . . .
. . . . . . # .
. . . . . . # .
. . . . . . # .
. . . . . . . .
. . . . . . . .
. . . . . . . .
. . . . . . . .
"""


def drawing(text):
    """float [8, 8] of a picture: digits are tenths, ".": 0, other characters: 1."""
    values = {".": 0.0, "0": 0.01} | {str(k): k / 10 for k in range(1, 10)}
    rows = [[values.get(mark, 1.0) for mark in line.split()] for line in text.split("\n") if line]
    return torch.tensor(rows)


class DrawnHead(RegionMaskHead):
    """Predicts masks that are parameters; a region's number is its feature."""

    def __init__(self, probabilities, num_outputs=1, channels=None):
        """`probabilities` [N, M, M] of N regions, in channel `channels[n]` of `num_outputs`."""
        super().__init__()
        n, side, _ = probabilities.shape
        logits = torch.full((n, num_outputs, side, side), -3.0)
        logits[range(n), channels or [0] * n] = probabilities.logit()
        self.logits = nn.Parameter(logits)
        self.asked_for = []

    def predict(self, context):
        rows = context.features[:, 0, 0, 0].long()
        self.asked_for.append((rows.tolist(), self.training))
        return self.logits[rows]


def scene(kind="threshold", teacher=None, **options):
    """The head with drawn predictions, and the context: regions of U, S, then image 1's V and W.

    V has a mask, W has none; no object overlaps them, and their frames are their boxes.
    """
    size = (16, 16)
    first, second = Instances(size), Instances(size)
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[1, 8:, 8:] = True
    masks[2] = True  # garbage
    masks[3, 4:6, 4:6] = True
    first.gt_boxes = Boxes(
        torch.tensor([[2.0, 2, 14, 12], [8, 8, 16, 16], [0, 0, 9, 9], [4, 4, 6, 6]])
    )
    first.gt_masks = BitMasks(masks)
    first.gt_has_mask = torch.tensor([False, True, False, True])
    first.gt_classes = torch.tensor([2, 0, 1, 1])
    second.gt_boxes = Boxes(torch.tensor([[0.0, 0, 8, 16], [8, 0, 16, 16]]))
    second.gt_masks = BitMasks(torch.ones(2, *size, dtype=torch.bool))  # W's is garbage
    second.gt_masks.tensor[0, 8:] = second.gt_masks.tensor[0, :, 8:] = False
    second.gt_has_mask = torch.tensor([True, False])
    second.gt_classes = torch.tensor([0, 2])
    whole = [0.0, 0, 16, 16]
    regions = []
    for target, index, frames in (
        (first, [0, 1], [whole, whole]),
        (second, [0, 1], second.gt_boxes.tensor.tolist()),
    ):
        index = torch.tensor(index)
        region = Instances(size, proposal_boxes=Boxes(torch.tensor(frames)), gt_index=index)
        region.gt_classes, region.gt_has_mask = target.gt_classes[index], target.gt_has_mask[index]
        regions.append(region)
    dark = drawing(DARK).repeat_interleave(2, 0).repeat_interleave(2, 1)
    # The model's input: (color - mean) / std with std 60, two colors 120 gray levels apart.
    images = ImageList((1 - 2 * dark).expand(2, 3, *size).clone(), [size, size])
    context = RegionContext(
        regions=regions,
        features=torch.arange(4.0)[:, None, None, None],
        pool=None,
        targets=[first, second],
        images=images,
    )
    if teacher is None:
        teacher = torch.stack([drawing(TEACHER), *[torch.full((SIDE, SIDE), 0.8)] * 3])
    student = torch.stack([drawing(STUDENT), *[torch.full((SIDE, SIDE), 0.4)] * 3])
    crf = {"gaussian_weight": 0.0, "bilateral_sigma": 1e4, "bilateral_weight": 20.0}
    head = TeacherStudentMaskHead(
        teacher=DrawnHead(teacher),
        student=DrawnHead(student, 3, [2, 0, 0, 2]),
        num_classes=3,
        pseudo_masks=PseudoMasks(kind, crf=crf),
        pixel_std=(60.0,) * 3,
        **options,
    )
    return head, context


def losses_of(head, context, iteration=0):
    with EventStorage(iteration) as storage:
        losses = head.losses(context)
    return losses, storage


def targets_of(head, context):
    with EventStorage():
        return head.targets(context, head.predict(context))
