"""Two processes that do the same thing at the same time."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier


def two_at_once(run: Callable[[Barrier], None], seconds: float = 100) -> None:
    """Run it in two forked processes, which have a barrier in common; both have to end well."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=run, args=(barrier,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0
