"""Messages from before there is a log."""

import logging

import psis_d2  # noqa: F401
from psis_d2.engine.logs import keeping_messages, write_kept

import pytest

logger = logging.getLogger("psis_d2.data.records")


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def log(monkeypatch):
    """The logger of psis_d2 as it is in a new process."""
    log = logging.getLogger("psis_d2")
    monkeypatch.setattr(log, "handlers", [])
    level = log.level
    log.setLevel(logging.NOTSET)
    yield log
    log.setLevel(level)


def test_what_is_said_before_the_log_is_in_it_once(log, monkeypatch, capsys):
    # pytest's, which a test gets when it begins: of the root, and of a logger that does not hand on
    # its messages, as ours once an earlier test has set up a run
    for logger_of_pytest in (logging.root, log):
        monkeypatch.setattr(logger_of_pytest, "handlers", [])
    with keeping_messages():
        logger.info("%d crowds", 3)
        logger.warning("odd boxes")
    logger.info("unheard")
    heard = Heard()
    log.addHandler(heard)
    write_kept()
    write_kept()
    assert heard.texts == ["3 crowds", "odd boxes"]
    assert log.level == logging.NOTSET
    assert capsys.readouterr().err.split("\n") == ["odd boxes", ""]  # at once, and once


def test_who_has_had_a_message_does_not_get_it_again(log, capsys):
    first, second = Heard(), Heard()
    log.addHandler(first)
    with keeping_messages():
        logger.warning("odd boxes")
    log.addHandler(second)
    write_kept()
    assert first.texts == second.texts == ["odd boxes"]
    assert capsys.readouterr().err == ""


def test_what_a_refused_run_said_is_not_in_the_log_of_the_next(log):
    with pytest.raises(ValueError), keeping_messages():
        logger.warning("odd boxes")
        raise ValueError
    heard = Heard()
    log.addHandler(heard)
    write_kept()
    assert heard.texts == []
