"""What the kinds of studies have in common: jobs that a process can do alone, and a bench that does them.

A job's result lines are told from all others by its place and its settings hash; a study is done when every job has
its lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bmtpt.results import Result
from bmtpt.train.events import Listener


class Place(NamedTuple):
    """What the result lines of one job have in common and no other job of the same settings has."""

    study: str
    method: str
    variant: str
    target: str
    shots: int | None
    seed: int


@dataclass(frozen=True)
class Job:
    """A cell of a study, the cells of targets that are trained in one run, or what cells wait for.

    Attributes:
        place: Where its result lines stand.
        settings_hash: Of everything that decides their values.
        metrics: What its lines hold when they are whole.
        work: For the bench: what is to be done.
        needs: Jobs that come first.
        on_demand: It is done when another job needs it, and not for its own lines' sake.
        beside: Further places that it writes lines for, and what these hold when they are whole.
    """

    place: Place
    settings_hash: str
    metrics: frozenset[str]
    work: tuple[Any, ...] = ()
    needs: tuple[Job, ...] = ()
    on_demand: bool = False
    beside: tuple[tuple[Place, frozenset[str]], ...] = ()

    @property
    def lines(self) -> dict[Place, frozenset[str]]:
        """What it writes: metrics by place."""
        return {self.place: self.metrics, **dict(self.beside)}

    @property
    def name(self) -> str:
        """For people."""
        place = self.place
        method = f"{place.method}[{place.variant}]" if place.variant else place.method
        shots = "" if place.shots is None else f" k={place.shots}"
        targets = "+".join(each.target for each in self.lines)
        return f"{targets} {method}{shots} seed={place.seed}"


class Bench(Protocol):
    """Plans a study and does its jobs; every process has its own."""

    def jobs(self) -> list[Job]:
        """Return all jobs, each behind what it needs."""
        ...

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Refuse what cannot be done before anything is begun."""
        ...

    def run(self, job: Job, listener: Listener | None) -> list[Result]:
        """Do a job whose needs are done; return its lines."""
        ...

    def finish(self, results: Sequence[Result], folder: Path) -> None:
        """Write what is made of all results (pictures)."""
        ...


def to_do(jobs: Sequence[Job], done: Iterable[Job]) -> list[Job]:
    """Return the jobs that are left, in order: those without lines, and what they need."""
    finished = set(done)
    left = {job for job in jobs if not job.on_demand and job not in finished}
    needed = {need for job in left for need in job.needs if need.on_demand}
    return [job for job in jobs if job in left or job in needed]


def place_of(row: Result) -> Place:
    """Return where a result line stands."""
    return Place(row.study, row.method, row.variant, row.target, row.shots, row.seed)


def in_order(results: Sequence[Result], jobs: Sequence[Job]) -> list[Result]:
    """Sort results by the order of their jobs, whichever process was first."""
    order: Mapping[Place, int] = {place: number for number, job in enumerate(jobs) for place in job.lines}
    return sorted(results, key=lambda row: order[place_of(row)])
