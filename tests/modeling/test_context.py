"""What a mask head learns of its regions from the context."""

import psis_d2  # noqa: F401
from psis_d2.modeling.context import RegionContext, SampledRegions

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances


def annotated(boxes, masks, has_mask, size=(8, 8)):
    """An image's target; masks are lists of pixels (y, x)."""
    target = Instances(size)
    target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    tensor = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for k, pixels in enumerate(masks):
        for y, x in pixels:
            tensor[k, y, x] = True
    target.gt_masks = BitMasks(tensor)
    target.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
    target.gt_classes = torch.arange(len(boxes))
    return target


def regions_of(target, index, boxes):
    index = torch.tensor(index, dtype=torch.int64)
    return Instances(
        target.image_size,
        proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=target.gt_classes[index],
        gt_has_mask=target.gt_has_mask[index],
        gt_index=index,
    )


def two_images():
    """Objects 0 and 2 of the first image have masks; the second image has no object."""
    first = annotated(
        [[0, 0, 4, 4], [2, 1, 7, 6], [4, 4, 8, 8]],
        # a quarter of the cell at (1, 1), everything, another quarter of that cell
        [[(2, 2), (0, 0), (0, 1), (1, 0)], [(y, x) for y in range(8) for x in range(8)], [(3, 3)]],
        [True, False, True],
    )
    second = annotated([], [], [])
    regions = [
        regions_of(first, [1, 0, 2], [[0, 0, 8, 8], [0, 0, 4, 4], [2, 2, 6, 6]]),
        regions_of(second, [], []),
    ]
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    return RegionContext(
        regions=regions,
        features=torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 4),
        box_features=torch.arange(3.0, 6.0)[:, None, None, None].expand(3, 5, 2, 2),
        pool=lambda boxes: boxes,
        targets=[first, second],
        sampled=SampledRegions(
            *(torch.rand(5, 2, 4, 4), torch.zeros(5), torch.tensor([4, 0, 2]), torch.zeros(5))
        ),
        images=ImageList(images, [(8, 8), (8, 8)]),
    )


def test_selected_regions_keep_what_is_theirs():
    context = two_images()
    part = context.select(torch.tensor([True, False, True]))
    assert [len(x) for x in part.regions] == [2, 0]
    assert part.features[:, 0, 0, 0].tolist() == [0, 2]
    assert part.box_features[:, 0, 0, 0].tolist() == [3, 5]
    assert part.classes.tolist() == [1, 2]
    assert part.has_mask.tolist() == [False, True]
    assert part.sampled.rows.tolist() == [4, 2]
    assert part.sampled.features is context.sampled.features
    for field in ("pool", "targets", "images", "box_predictor"):
        assert getattr(part, field) is getattr(context, field)
    assert len(context.select(torch.zeros(3, dtype=torch.bool))) == 0


def test_regions_with_a_mask_alone_have_targets():
    context = two_images()
    annotated = context.annotated
    assert annotated.classes.tolist() == [0, 2]
    assert annotated.features[:, 0, 0, 0].tolist() == [1, 2]
    assert annotated.annotated is annotated
    # object 0 in cells of one pixel, from (0, 0), and object 2 from (2, 2)
    expected = torch.zeros(2, 4, 4)
    expected[0, [0, 0, 1, 2], [0, 1, 0, 2]] = 1
    expected[1, 1, 1] = 1
    assert torch.equal(annotated.mask_targets(4), expected)
    assert torch.equal(annotated.select(torch.tensor([False, True])).mask_targets(4), expected[1:])
    # refused also if it happens that all regions have a mask
    for some in (context, context.select(context.has_mask)):
        with pytest.raises(ValueError, match="only regions with a mask .* ask context.annotated"):
            some.mask_targets(4)


def test_selected_regions_keep_their_wide_frames():
    context = two_images()
    wide = [Boxes(torch.arange(12.0).view(3, 4)), Boxes(torch.zeros(0, 4))]
    context = RegionContext(
        regions=context.regions,
        features=context.features,
        pool=None,
        targets=context.targets,
        wide_frames=wide,
    )
    part = context.select(torch.tensor([False, True, True]))
    assert torch.equal(part.frames[0].tensor, wide[0].tensor[1:])
    assert len(part.frames[1]) == 0
    assert part.sampled is None


def test_cells_of_annotated_objects_are_those_of_their_union():
    cells = two_images().annotated_cells(4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = True  # three quarters of it
    expected[1, 1] = True  # a quarter from each of two objects
    assert torch.equal(cells[0], expected)
    # cells of one pixel
    pixels = torch.zeros(4, 4, dtype=torch.bool)
    pixels[[0, 0, 1, 2, 3], [0, 1, 0, 2, 3]] = True
    assert torch.equal(cells[1], pixels)


def test_cells_of_the_annotated_box_are_those_with_their_center_in_it():
    cells = two_images().object_cells(4)
    # the box [2, 1, 7, 6] in cells of two pixels: centers 1, 3, 5, 7 lie in it from 2 to 7, 1 to 6
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert torch.equal(cells[0], expected)
    assert cells[1].all()
    corner = torch.zeros(4, 4, dtype=torch.bool)
    corner[2:, 2:] = True  # [4, 4, 8, 8] seen from [2, 2, 6, 6]
    assert torch.equal(cells[2], corner)


def test_image_crops_are_means_of_the_cells_pixels():
    context = two_images()
    crops = context.image_crops(4)
    image = context.images.tensor[0]
    assert torch.allclose(crops[0], torch.nn.functional.avg_pool2d(image, 2))
    assert torch.allclose(crops[2], image[:, 2:6, 2:6])


def test_no_region_at_all():
    empty = two_images().select(torch.zeros(3, dtype=torch.bool))
    assert empty.annotated_cells(4).shape == empty.object_cells(4).shape == (0, 4, 4)
    assert empty.image_crops(4).shape == (0, 3, 4, 4)
