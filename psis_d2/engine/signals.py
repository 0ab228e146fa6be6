"""SIGTERM and SIGINT as an orderly end of training; processes that do not outlive their parent."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One Ctrl-C may arrive twice, from the terminal and from a launcher that passes it on.
_REPEAT_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


tell_parent: Callable[[int], None] | None = None
"""How this process tells the launcher that started it of a signal; None without one."""


class Interruption(SystemExit):
    """The process was asked to end. Its status is what a shell reports: 128 + the signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


class SignalGate:
    """Handles SIGTERM and SIGINT inside its ``with`` block.

    A signal raises :class:`Interruption`, but within :meth:`deferring` it is only noted in
    ``received``, for the block's owner to look at; a second one, later than an echo of the first,
    is not put off any more. In threads other than the main one, where Python allows no handlers, it
    does nothing.

    Args:
        on_signal: called with the first signal, from its handler.
    """

    def __init__(self, on_signal: Callable[[int], None] | None = None):
        self.received: int | None = None
        self._on_signal = on_signal
        self._since = 0.0
        self._deferring = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "SignalGate":
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(self, *exc_info) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def deferring(self, on: bool = True) -> Iterator[None]:
        """Put signals off within the block; with ``on=False`` raise them there."""
        before, self._deferring = self._deferring, on
        try:
            yield
        finally:
            self._deferring = before

    def seconds(self) -> float:
        """How long ago the signal came; 0 without one."""
        return time.monotonic() - self._since if self.received else 0.0

    def receive(self, signum: int) -> None:
        """Note a signal, or what has to count as one."""
        self.received, self._since = signum, time.monotonic()
        if self._on_signal:
            self._on_signal(signum)

    def _handle(self, signum: int, frame) -> None:
        if self.received is None:
            self.receive(signum)
        elif self.seconds() < _REPEAT_SECONDS:
            return
        elif self._deferring:
            raise Interruption(self.received)
        if not self._deferring:
            raise Interruption(signum)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process (SIGKILL) as soon as its parent is gone, however that went.

    Where the kernel cannot (other systems than Linux), a thread looks every second.

    Args:
        parent: pid of the parent; if that is gone already, the process ends here.
    """
    done = False
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            done = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    if os.getppid() != parent:
        os._exit(1)
    if not done:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
