"""Lists of category names: what differs, and which name is which class."""

from psis_d2.data.category_names import differing_names, match_names

import pytest


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["a", "b", "c"], ["a", "d"], "'b' / 'd', 'c'"),
        (["a"], ["a", "b"], "'b'"),
        (
            [*"abcdefgh"],
            [*"hgfedcba"],
            "'a' / 'h', 'b' / 'g', 'c' / 'f', 'd' / 'e', 'e' / 'd', and 3 more",
        ),
    ],
)
def test_differences_are_named_by_place(ours, theirs, difference):
    assert differing_names(ours, theirs) == difference


def test_names_are_matched_whatever_their_order():
    assert match_names(["c", "x", "a"], ["a", "b", "c"]) == [2, None, 0]
