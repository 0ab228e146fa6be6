"""Maps in boxes: means and interpolation by hand."""

import psis_d2  # noqa: F401
from psis_d2.modeling.condinst.box_grids import paste_into_boxes, pool_from_boxes

import torch

# Columns 2 to 5 of rows 1 to 2, and one cell.
CELLS = torch.tensor([[2, 1, 5, 2], [0, 3, 0, 3]])


def test_pooled_cells_are_means():
    maps = torch.arange(2 * 4 * 6, dtype=torch.float32).view(2, 4, 6)
    pooled = pool_from_boxes(maps, CELLS, 2)
    # rows 1 and 2 in halves of two columns: 8 9 | 10 11 and 14 15 | 16 17
    assert pooled[0].tolist() == [[8.5, 10.5], [14.5, 16.5]]
    assert pooled[1].shape == (2, 2)


def test_pasted_values_are_interpolated_inside_and_nothing_changes_outside():
    values = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]])
    maps = torch.full((2, 4, 6), -1.0)
    pasted = paste_into_boxes(values, CELLS, maps)
    expected = maps.clone()
    expected[0, 1:3, 2:6] = torch.tensor([0.0, 0.25, 0.75, 1.0])
    expected[1, 3, 0] = 7
    torch.testing.assert_close(pasted, expected)


def test_values_of_the_grid_s_own_cells_come_back():
    maps = torch.rand(1, 4, 6)
    square = torch.tensor([[1, 0, 3, 2]])
    other = paste_into_boxes(pool_from_boxes(maps, square, 3), square, torch.zeros(1, 4, 6))
    torch.testing.assert_close(other[:, :3, 1:4], maps[:, :3, 1:4])


def test_no_instance():
    nothing = torch.zeros(0, 4, 6)
    cells = torch.zeros(0, 4, dtype=torch.int64)
    assert pool_from_boxes(nothing, cells, 3).shape == (0, 3, 3)
    assert paste_into_boxes(torch.zeros(0, 3, 3), cells, nothing).shape == (0, 4, 6)
