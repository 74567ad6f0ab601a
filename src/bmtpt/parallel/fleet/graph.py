"""The one walk through a graph of jobs: a job starts when all that it needs is done, whatever the executor."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import Any, Protocol, TypeVar

from bmtpt.errors import BmtptError, TrainingError, is_out_of_memory, shortened

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        sentence: For people.
        trace: The traceback, from whichever process.
        refusal: What the user got wrong, if it is that: every other job would meet it too.
    """

    sentence: str
    trace: str
    refusal: BmtptError | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception."""
        known = isinstance(error, BmtptError)
        sentence = str(error) if known else f"{type(error).__name__}: {error}".removesuffix(": ")
        if is_out_of_memory(error):
            sentence = "memory ran out"
        refusal = error if isinstance(error, BmtptError) and not isinstance(error, TrainingError) else None
        return cls(shortened(sentence, 200), "".join(traceback.format_exception(error)), refusal)


def attempted(work: Callable[[J], R], job: J) -> R | Failure:
    """Do a job, wherever this runs, and return its result or why there is none."""
    try:
        return work(job)
    except Exception as error:
        return Failure.of(error)


class Executor(Protocol):
    """What does jobs: in this process, in others, on other machines.

    Attributes:
        slots: Most jobs that should be with it at a time; None for as many as are ready.
        place: Where jobs run that may not run on this machine ("on Ray"), or "".
    """

    place: str

    @property
    def slots(self) -> int | None: ...

    def submit(self, work: Callable[[J], R], jobs: Sequence[J]) -> None:
        """Take jobs, the first one first; return at once. Each ends with what `attempted` returns."""

    def wait(self) -> Sequence[tuple[Any, Any]]:
        """Return the jobs that have ended since the last call, at least one, each with its result or `Failure`."""

    def close(self) -> None:
        """End what runs, at once, and free what is held."""


def run_jobs(
    needs: Mapping[J, Collection[J]], work: Callable[[J], R], executor: Executor
) -> Generator[tuple[J, R | Failure]]:
    """Do jobs, and yield each with its result, or why it has none, as it ends.

    A job that needs a failed one is never started. A caller who leaves early closes the executor, where jobs may run.

    Args:
        needs: By job, the jobs that come first; of several that are ready, the first in this order starts.
        work: Does a job, possibly in another process.

    Raises:
        BmtptError: A job met a mistake of the user's own, which every other job would meet.
    """
    order = list(needs)
    rank = {job: number for number, job in enumerate(order)}
    graph = TopologicalSorter({rank[job]: [rank[need] for need in needs[job]] for job in order})
    graph.prepare()
    ready: list[int] = []
    running = 0
    while True:
        for number in graph.get_ready():
            heappush(ready, number)
        room = len(ready) if executor.slots is None else min(executor.slots - running, len(ready))
        if room > 0:
            executor.submit(work, [order[heappop(ready)] for _ in range(room)])
            running += room
        if not running:
            return
        for job, outcome in executor.wait():
            running -= 1
            if not isinstance(outcome, Failure):
                graph.done(rank[job])
            elif outcome.refusal:
                raise outcome.refusal
            yield job, outcome
