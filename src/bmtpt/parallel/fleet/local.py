"""Executors of this machine: this process itself, or several with one thread each (joblib's loky)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeVar

from joblib.externals.loky import get_reusable_executor, process_executor
from tqdm import tqdm

from bmtpt.errors import TrainingError
from bmtpt.parallel.fleet.graph import attempted

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")

ONE_THREAD = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")},
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a process that has one core."""


class Here:
    """Does jobs one after the other in this process."""

    place = ""
    slots = 1

    def __init__(self) -> None:
        self._next: list[tuple[Callable[[Any], Any], Any]] = []

    def submit(self, work: Callable[[J], R], jobs: Sequence[J]) -> None:
        """Keep them until someone waits."""
        self._next += [(work, job) for job in jobs]

    def wait(self) -> list[tuple[Any, Any]]:
        """Do the first one."""
        work, job = self._next.pop(0)
        return [(job, attempted(work, job))]

    def close(self) -> None:
        """Nothing runs between two calls."""


class Processes:
    """Does jobs in several processes of this machine, which start with the first jobs."""

    place = ""

    def __init__(self, processes: int) -> None:
        self.slots = processes
        self._pool = get_reusable_executor(
            processes, timeout=None, initializer=_start_child, initargs=(os.getpid(),), env=ONE_THREAD
        )
        self._running: dict[Future[Any], Any] = {}
        self._started = False

    def submit(self, work: Callable[[J], R], jobs: Sequence[J]) -> None:
        """Start them; there is a process for each."""
        self._started = True
        for job in jobs:
            self._running[self._pool.submit(attempted, work, job)] = job

    def wait(self) -> list[tuple[Any, Any]]:
        """Return those that have ended.

        Raises:
            TrainingError: A process was killed.
        """
        ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        try:
            return [(self._running.pop(each), each.result()) for each in [*self._running] if each in ended]
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process of the study was killed, probably because the machine ran out of memory; "
                "finished cells are kept: run the study again with fewer processes"
            ) from error

    def close(self) -> None:
        """Kill the processes."""
        if self._started:
            self._let_it_see_all()
        self._pool.shutdown(wait=True, kill_workers=True)

    def _let_it_see_all(self) -> None:
        """Wait for loky's thread, which fails, and prints so, when it is told to end before it has seen the last job.

        Ctrl-C comes whenever it comes. The thread sees jobs in their order: one more that it has seen is the last.
        """
        with suppress(BrokenProcessPool):
            last = self._pool.submit(int)
            while not (last.running() or last.done()):
                time.sleep(0.001)


def _start_child(parent: int) -> None:
    def end_with_parent() -> None:  # a killed parent cannot end its children
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    # By default a semaphore of the system, which a killed process leaves behind, so that Python warns of a leak.
    tqdm.set_lock(threading.RLock())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    # loky takes a process that grows by 300 MB for a leak and starts another; ours keeps a model and rows on purpose.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
