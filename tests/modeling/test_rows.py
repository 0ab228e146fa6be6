"""Rows of several images at once."""

import psis_d2  # noqa: F401
from psis_d2.modeling.rows import batch_rows, rows_where

import torch


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_rows_by_hand():
    first, second = rows_where(
        [flags(0, 1, 1), flags(), flags(1)],
        [flags(0), flags(0, 1)],
    )
    assert [x.tolist() for x in first] == [[1, 2], [], [0]]
    assert [x.tolist() for x in second] == [[], [1]]
    assert batch_rows(first, [3, 0, 1]).tolist() == [1, 2, 3]
    assert batch_rows(second, [1, 2]).tolist() == [2]


def test_no_images_have_no_rows():
    assert rows_where([], []) == [[], []]
    assert batch_rows([], []).shape == (0,) and batch_rows([], []).dtype == torch.int64
