"""Let a run that is asked to end (SIGTERM: a scheduler, a shutdown) finish its step and write a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that ended because it was asked to: 143."""


@contextmanager
def termination_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has arrived since; the signal itself no longer ends the process.

    A signal that was not acted on ends it when the block does, so that none is lost between two stages.

    Only the main thread may handle signals: in any other one the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if arrived.is_set():
        raise SystemExit(TERMINATED)
