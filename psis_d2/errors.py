"""The one exception that speaks to the person at the keyboard."""

import contextlib
import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. ``str(error)`` is one sentence that names the thing and how to fix it.

    Entry points print it as ``error: <sentence>`` and exit with status 2 instead of showing a
    traceback; everything else that goes wrong is a fault of the code and keeps its traceback.
    """


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint at the word that is spelled most alike: " (did you mean X?)", or "" if none is."""
    words = [candidate for candidate in words if candidate]
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:  # the same letters in another case are unlike to difflib
        near = [candidate for candidate in words if candidate.lower() == word.lower()]
    return f" (did you mean {near[0]}?)" if near else ""


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Turn down a value that is not among the choices of its config key.

    Raises:
        UserError: naming the key, the value and the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise UserError(f"{key} is '{value}'; choose one of {', '.join(choices)}{hint}.")


@contextlib.contextmanager
def exit_on_user_error():
    """Run an entry point's body; on a :class:`UserError` print its sentence and exit with 2.

    A ``SystemExit`` with a sentence, which is how a user error leaves Detectron2's training loop
    without being logged as a crash, ends the same way.
    """
    try:
        yield
    except (UserError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
