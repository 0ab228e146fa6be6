"""Box losses: by hand, against their literal definitions, and what they drive masks to."""

import math

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.box_supervision import (
    box_cells,
    cell_indicators,
    directions,
    lab_colors,
    lab_image,
    pairwise_loss,
    projection_loss,
    similar_neighbors,
)

import pytest
import torch

SIZE = (7, 9)


def box_masks(cells, size=SIZE):
    columns, rows = cell_indicators(cells, size)
    return rows[:, :, None] & columns[:, None]


def random_cells(n, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.stack([torch.randint(0, k, (n,), generator=generator) for k in size[::-1]], 1)
    last = corner + torch.randint(0, 6, (n, 2), generator=generator)
    return torch.cat([corner, last.minimum(torch.tensor([size[1] - 1, size[0] - 1]))], dim=1)


def neighbors_alike(colors, size, valid_rows, dilation, threshold):
    """The definition: {(y, x, y', x')} of all eight directions."""
    height, width = colors.shape[-2:]
    height = min(height, valid_rows)
    pairs = set()
    for y in range(size[0]):
        for x in range(size[1]):
            for dy in (-dilation, 0, dilation):
                for dx in (-dilation, 0, dilation):
                    v, u = y + dy, x + dx
                    exists = 0 <= v < height and 0 <= u < width and y < height and x < width
                    if (dy, dx) == (0, 0) or not exists:
                        continue
                    difference = (colors[:, y, x] - colors[:, v, u]).tolist()
                    if math.exp(-math.hypot(*difference) / 2) >= threshold:
                        pairs.add((y, x, v, u))
    return pairs


def pairwise_by_loops(logits, inside, pairs_of_image, images):
    """Minus the log-probability of equal labels over the like pairs of each pixel in the box."""
    total, count = 0.0, 0
    for logit, mask, image in zip(logits, inside, images, strict=True):
        p = logit.sigmoid()
        for y, x, v, u in sorted(pairs_of_image[image]):
            if mask[y, x]:
                total = total - (p[y, x] * p[v, u] + (1 - p[y, x]) * (1 - p[v, u])).log()
                count += 1
    return total, count


def test_box_cells_by_hand():
    boxes = torch.tensor(
        [
            [0.0, 0, 8, 4],  # whole cells
            [1.9, 2.1, 10.1, 9.9],  # centers at 2, 6, 10 and at 6
            [4.5, 8.2, 5.5, 8.9],  # no center: the cell around (5, 8.55)
            [30.0, 22, 40, 40],  # the last columns and rows, and beyond
            [35.9, 28, 36, 28],  # nothing, at the corner
        ]
    )
    assert box_cells(boxes, 4, SIZE).tolist() == [
        [0, 0, 1, 0],
        [0, 1, 2, 1],
        [1, 2, 1, 2],
        [7, 5, 8, 6],
        [8, 6, 8, 6],
    ]
    assert box_cells(torch.zeros(0, 4), 4, SIZE).shape == (0, 4)


def test_indicators_by_hand():
    columns, rows = cell_indicators(torch.tensor([[1, 2, 3, 2]]), (4, 5))
    assert columns.int().tolist() == [[0, 1, 1, 1, 0]]
    assert rows.int().tolist() == [[0, 0, 1, 0]]


def test_a_mask_that_fills_its_box_has_no_projection_loss():
    cells = random_cells(20)
    loss = projection_loss(box_masks(cells).float(), cells)
    assert loss.abs().max() < 2e-5
    # One row less is seen by one of the two projections.
    cells = torch.tensor([[2, 1, 5, 4]])
    shorter = box_masks(torch.tensor([[2, 1, 5, 3]])).float()
    assert projection_loss(shorter, cells).item() == pytest.approx(1 - 2 * 3 / (3 + 4), abs=1e-4)


def test_projection_loss_equals_its_definition():
    torch.manual_seed(0)
    p, cells = torch.rand(5, *SIZE, dtype=torch.float64), random_cells(5)
    losses = []
    for mask, (x0, y0, x1, y1) in zip(p.tolist(), cells.tolist(), strict=True):
        columns = [max(row[x] for row in mask) for x in range(SIZE[1])]
        rows = [max(row) for row in mask]
        loss = 0.0
        for maxima, first, last in ((columns, x0, x1), (rows, y0, y1)):
            box = [float(first <= k <= last) for k in range(len(maxima))]
            overlap = sum(a * b for a, b in zip(maxima, box, strict=True))
            squares = sum(a * a for a in maxima) + sum(b * b for b in box)
            loss += 1 - 2 * overlap / (squares + 1e-5)
        losses.append(loss)
    assert projection_loss(p, cells).tolist() == pytest.approx(losses, rel=1e-9)


def test_lab_of_known_colors():
    # Published values for sRGB and D65.
    colors = {
        (255, 255, 255): (100.0, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 255): (32.30, 79.19, -107.86),
    }
    for rgb, lab in colors.items():
        image = torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
        for order, name in ((image, "RGB"), (image.flip(0), "BGR")):
            assert lab_image(order, name, 4).flatten().tolist() == pytest.approx(lab, abs=0.1)


def test_colors_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    image = torch.rand(8, 9, 3, generator=torch.Generator().manual_seed(0))
    image[:2, :2] = torch.tensor([0, 0.008, 1])  # both parts of the curves
    for image_format in ("BGR", "RGB"):
        code = getattr(cv2, f"COLOR_{image_format}2Lab")
        expected = torch.from_numpy(cv2.cvtColor(image.numpy(), code)).permute(2, 0, 1)
        found = lab_colors(image.permute(2, 0, 1)[None], image_format)[0]
        # OpenCV interpolates in a coarse table of colors.
        torch.testing.assert_close(found, expected, atol=0.4, rtol=0)


def test_cells_of_an_image_are_averaged_also_at_the_edge():
    image = torch.zeros(3, 5, 6, dtype=torch.uint8)
    image[:, 4, 4:] = 200  # all there is of the lower right cell
    image[:, 0, :4] = 100
    colors = lab_image(image, "RGB", 4)
    assert colors.shape == (3, 2, 2)
    for (y, x), gray in {(0, 0): 25, (0, 1): 0, (1, 0): 0, (1, 1): 200}.items():
        flat = torch.full((3, 1, 1), gray, dtype=torch.uint8)
        expected = lab_image(flat, "RGB", 1).flatten()
        torch.testing.assert_close(colors[:, y, x], expected, atol=1e-3, rtol=0)


def test_colors_need_a_color_format():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(UserError, match="INPUT.FORMAT is 'L'; choose one of BGR, RGB"):
        lab_image(image, "L", 4)
    with pytest.raises(UserError, match="images of type uint8"):
        lab_image(image.float(), "RGB", 4)


@pytest.mark.parametrize(("dilation", "valid_rows"), [(1, 9), (2, 9), (2, 4), (2, 0), (6, 9)])
def test_similar_neighbors_equal_their_definition(dilation, valid_rows):
    torch.manual_seed(0)
    colors = 2 * torch.rand(3, 6, 7)  # smaller than the padded size
    similar = similar_neighbors(colors, SIZE, valid_rows, dilation, 0.5)
    found = set()
    for k, (down, right) in enumerate(directions(dilation)):
        for y, x in similar[k].nonzero().tolist():
            found |= {(y, x, y + down, x + right), (y + down, x + right, y, x)}
    expected = neighbors_alike(colors, SIZE, valid_rows, dilation, 0.5)
    assert found == expected
    assert similar.sum() * 2 == len(expected)
    everything = neighbors_alike(colors, SIZE, valid_rows, dilation, 0.0)
    assert not everything or 0 < len(expected) < len(everything) or len(everything) < 10


@pytest.mark.parametrize("dilation", [1, 2])
def test_pairwise_loss_and_gradient_equal_the_definition(dilation):
    torch.manual_seed(0)
    images = torch.tensor([0, 0, 1, 1, 1])
    colors = [2 * torch.rand(3, *SIZE) for _ in range(2)]
    similar = torch.stack([similar_neighbors(x, SIZE, 9, dilation, 0.5) for x in colors])
    pairs = [neighbors_alike(x, SIZE, 9, dilation, 0.5) for x in colors]
    cells = random_cells(5)
    results = []
    for literal in (False, True):
        logits = torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(1)).double() * 3
        logits.requires_grad_()
        if literal:
            total, count = pairwise_by_loops(logits, box_masks(cells), pairs, images.tolist())
        else:
            total, count = pairwise_loss(logits, cells, similar, images, dilation)
        total.backward()
        results.append((total.item(), float(count), logits.grad))
    (total, count, grad), (total_, count_, grad_) = results
    assert count == count_ > 50
    assert total == pytest.approx(total_, rel=1e-9)
    torch.testing.assert_close(grad, grad_)


def test_pairwise_loss_by_hand_and_far_out():
    """Two pixels of one row, both in the box: the pair counts in both directions."""
    similar = torch.zeros(1, 4, 1, 3, dtype=torch.bool)
    similar[0, 0, 0, 0] = True
    cells, images = torch.tensor([[0, 0, 2, 0]]), torch.tensor([0])
    for x, y in ((0.0, 0.0), (1.0, -2.0), (60.0, 50.0), (60.0, -50.0), (-80.0, -80.0)):
        total, count = pairwise_loss(torch.tensor([[[x, 9.0, y]]]), cells, similar, images, 2)
        p, q = (1 / (1 + math.exp(-z)) for z in (x, y))
        expected = -2 * math.log(max(p * q + (1 - p) * (1 - q), 1e-21))
        assert count.item() == 2
        assert total.item() == pytest.approx(expected, rel=0.05 if x - y > 100 else 1e-4, abs=1e-4)
    one_inside = torch.tensor([[0, 0, 1, 0]])
    assert pairwise_loss(torch.zeros(1, 1, 3), one_inside, similar, images, 2)[1].item() == 1
    outside = torch.tensor([[1, 0, 1, 0]])
    assert pairwise_loss(torch.zeros(1, 1, 3), outside, similar, images, 2)[1].item() == 0


def test_pairwise_loss_touches_no_logit_away_from_the_box():
    similar = torch.ones(1, 4, 12, 12, dtype=torch.bool)
    cells, images = torch.tensor([[4, 5, 6, 6]]), torch.tensor([0])
    for k, (down, right) in enumerate(directions(2)):  # as where colors are defined
        similar[0, k, 12 - down :] = False
        similar[0, k, :, (12 - right if right > 0 else 12) :] = False
        similar[0, k, :, : max(-right, 0)] = False
    logits = torch.randn(1, 12, 12, requires_grad=True)
    pairwise_loss(logits, cells, similar, images, 2)[0].backward()
    touched = logits.grad[0].ne(0)
    assert touched[5:7, 4:7].all()
    touched[3:9, 2:9] = False
    assert not touched.any()


def test_no_instance_gives_a_connected_zero():
    logits = torch.zeros(0, *SIZE, requires_grad=True)
    similar = torch.ones(1, 4, *SIZE, dtype=torch.bool)
    none = torch.zeros(0, 4, dtype=torch.int64)
    total, count = pairwise_loss(logits, none, similar, none[:, 0], 2)
    assert (total.item(), count.item()) == (0, 0)
    total.backward()
    assert projection_loss(logits, none).shape == (0,)


def test_both_losses_find_the_object_of_a_two_color_image():
    """A bright disc in its box on a dark ground; masks are functions of color."""
    height = width = 16
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (y - 8) ** 2 + (x - 7) ** 2 <= 18
    image = torch.where(disc, 220, 20).to(torch.uint8).expand(3, -1, -1)
    colors = lab_image(image, "RGB", 1)
    similar = similar_neighbors(colors, (height, width), height, 2, 0.3)[None]
    cells, images = torch.tensor([[3, 4, 11, 12]]), torch.tensor([0])
    assert torch.equal(box_masks(cells, disc.shape)[0].any(0), disc.any(0))
    inputs = torch.stack([colors[0] / 100, torch.ones(16, 16)])
    weights = torch.tensor([0.1, -0.05], requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.2)
    losses = []
    for step in range(60):
        logits = torch.einsum("c,chw->hw", weights, inputs)[None]
        total, count = pairwise_loss(logits, cells, similar, images, 2)
        losses.append((total / count).item())
        optimizer.zero_grad()
        # From its full weight at once, "all of one side" would be as good as any.
        growth = min(step / 30, 1)
        (growth * total / count + projection_loss(logits.sigmoid(), cells).sum()).backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=0.02)
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(logits[0] > 0, disc)
