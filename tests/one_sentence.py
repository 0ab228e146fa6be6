"""What a user reads when something is refused."""

from collections.abc import Callable

from psis_d2.errors import UserError

import pytest


def refusal(call: Callable, *arguments) -> str:
    """The UserError of a call, which has to be one sentence."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    words = str(caught.value)
    assert "\n" not in words
    assert words.endswith(".")
    return words
