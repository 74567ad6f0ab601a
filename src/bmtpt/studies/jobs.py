"""A study's jobs: what one process can do alone. A study is done when every job has its result lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bmtpt.results import Result


class Place(NamedTuple):
    """What the result lines of one job have in common with each other and with no other line."""

    study: str
    method: str
    variant: str
    target: str
    shots: int | None
    seed: int


@dataclass(frozen=True)
class Job:
    """A cell of a study, the cells of targets that are trained in one run, or a source stage that cells need.

    Attributes:
        place: Where its result lines belong.
        metrics: What its lines hold when they are complete.
        source_seed: Of the source stage that it starts from; None without one.
        work: `("cell", contender, targets)` or `("stage", contender, stage)`.
        needs: Jobs that come first.
        on_demand: It is done only when another job needs it, not for its own lines.
        others: Further places that it writes lines for, and their metrics.
    """

    place: Place
    metrics: frozenset[str]
    source_seed: int | None = None
    work: tuple[Any, ...] = ()
    needs: tuple[Job, ...] = ()
    on_demand: bool = False
    others: tuple[tuple[Place, frozenset[str]], ...] = ()

    @property
    def lines(self) -> dict[Place, frozenset[str]]:
        """What it writes: metrics by place."""
        return {self.place: self.metrics, **dict(self.others)}

    @property
    def name(self) -> str:
        """For people."""
        place = self.place
        method = f"{place.method}[{place.variant}]" if place.variant else place.method
        shots = "" if place.shots is None else f" k={place.shots}"
        targets = "+".join(each.target for each in self.lines)
        return f"{targets} {method}{shots} seed={place.seed}"


def to_do(jobs: Sequence[Job], done: Iterable[Job]) -> list[Job]:
    """Return the jobs that are left, in order: those without lines, and what they need."""
    finished = set(done)
    left = {job for job in jobs if not job.on_demand and job not in finished}
    needed = {need for job in left for need in job.needs if need.on_demand}
    return [job for job in jobs if job in left or job in needed]


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in groups, each of which needs only the groups before it: source stages first, then cells."""
    depth: dict[Job, int] = {}
    for job in jobs:  # a job comes after what it needs
        depth[job] = 1 + max((depth.get(need, -1) for need in job.needs), default=-1)
    last = max(depth.values(), default=0)
    groups: list[list[Job]] = [[] for _ in range(last + 1)]
    for job in jobs:
        groups[depth[job] if job.on_demand else last].append(job)
    return [group for group in groups if group]


def place_of(row: Result) -> Place:
    """Return where a result line belongs."""
    return Place(row.study, row.method, row.variant, row.target, row.shots, row.seed)


def in_order(results: Sequence[Result], jobs: Sequence[Job]) -> list[Result]:
    """Sort results by the order of their jobs, whichever process was first."""
    order: Mapping[Place, int] = {place: number for number, job in enumerate(jobs) for place in job.lines}
    return sorted(results, key=lambda row: order[place_of(row)])
