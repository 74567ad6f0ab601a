"""A study's jobs, and the lines that they have in its results file. A study is done when every job has its lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import SettingsError
from bmtpt.results import Result, as_line, read_results, text_of


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
    """What one process can do alone: a cell, the cells of targets trained in one run, or a source stage.

    Attributes:
        place: Where its result lines belong.
        metrics: What its lines hold when they are complete.
        source_seed: Of the source stage that it starts from; None without one.
        work: `("cell", contender, targets)` or `("stage", contender, stage)`.
        needs: Jobs that come first.
        on_demand: It is done only when another job needs it, not for its own lines.
        others: Further places that it writes lines for, and their metrics.
        written: Those of its places that have their lines already; it writes the others'.
    """

    place: Place
    metrics: frozenset[str]
    source_seed: int | None = None
    work: tuple[Any, ...] = ()
    needs: tuple[Job, ...] = ()
    on_demand: bool = False
    others: tuple[tuple[Place, frozenset[str]], ...] = ()
    written: frozenset[Place] = frozenset()

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
        return f"{'+'.join(dict.fromkeys(each.target for each in self.lines))} {method}{shots} seed={place.seed}"


def to_do(jobs: Sequence[Job], done: Iterable[Job]) -> list[Job]:
    """Return the jobs that are left, in order: those that lack lines, and what they need."""
    finished = set(done)
    left = {job for job in jobs if not job.on_demand and job not in finished}
    needed = {need for job in left for need in job.needs if need.on_demand}
    return [job for job in jobs if job in left or job in needed]


def stages_first(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs in the order in which several processes should start them, each after those that it needs.

    Seed after seed, source stages first, then cells: a study that is cut short has few seeds of everything.
    """
    seeds = list(dict.fromkeys(job.place.seed for job in jobs if not job.on_demand))
    depth: dict[Job, int] = {}
    first: dict[Job, int] = {}
    for job in jobs:  # a job comes after what it needs
        depth[job] = 1 + max((depth.get(need, -1) for need in job.needs), default=-1)
        if not job.on_demand:
            first[job] = seeds.index(job.place.seed)
            for need in job.needs:
                first[need] = min(first.get(need, first[job]), first[job])
    cells = 1 + max(depth.values(), default=0)
    return sorted(jobs, key=lambda job: (first[job], depth[job] if job.on_demand else cells))


def place_of(row: Result) -> Place:
    """Return where a result line belongs."""
    return Place(*(getattr(row, name) for name in Place._fields))


def in_order(results: Sequence[Result], jobs: Sequence[Job]) -> list[Result]:
    """Sort results by the order of their jobs and of the places in each, whichever was written first."""
    order = {place: number for number, place in enumerate(place for job in jobs for place in job.lines)}
    return sorted(results, key=lambda row: order[place_of(row)])


def whole_lines(path: Path, jobs: Sequence[Job]) -> list[Result]:
    """Return the lines that the jobs have so far; half a line, the lines of a place that lacks some, and all but
    the last of doubled lines are dropped from the file.

    Lines of other studies and of other cells stay in the file.

    Raises:
        SettingsError: A line started from another source stage than the study now asks for.
    """
    if not path.is_file():
        return []
    whole, _, torn_line = text_of(path).rpartition("\n")
    if torn_line:
        write_text_atomically(path, whole + "\n" if whole else "")
    rows = read_results(path)
    places = {place: job for job in jobs for place in job.lines}
    found: dict[Place, set[str]] = defaultdict(set)
    for row in rows:
        found[place_of(row)].add(row.metric)
        job = places.get(place_of(row))
        if job and row.source_seed != job.source_seed:
            raise SettingsError(
                f"{path} holds {job.name} from source seed {row.source_seed}, and this study asks for "
                f"{job.source_seed}; choose another folder"
            )
    lost = {place for job in jobs for place, metrics in job.lines.items() if not found[place] >= metrics}
    kept = [row for row in rows if place_of(row) not in lost]
    if len(kept) < len(whole.split("\n")):
        _write(path, kept)
    return [row for row in kept if place_of(row) in places]


def done_jobs(jobs: Sequence[Job], rows: Sequence[Result]) -> set[Job]:
    """Return the jobs of which all lines are among complete lines."""
    there = {place_of(row) for row in rows}
    return {job for job in jobs if job.lines.keys() <= there}


def without_written(jobs: Sequence[Job], rows: Sequence[Result]) -> list[Job]:
    """Return the jobs so that none writes its complete lines again."""
    there = {place_of(row) for row in rows}
    return [job if job.on_demand else replace(job, written=frozenset(job.lines.keys() & there)) for job in jobs]


def put_in_order(path: Path, ordered: Sequence[Result]) -> None:
    """Sort a study's lines in its file, so that the file does not depend on which process was first.

    Lines of other studies and of other cells stay where they are.

    Args:
        path: The study's results file.
        ordered: All of the study's lines in it, in the order of its plan.
    """
    own, following = {place_of(row) for row in ordered}, iter(ordered)
    rows = read_results(path) if ordered else []
    placed = [next(following) if place_of(row) in own else row for row in rows]
    if placed != rows:
        _write(path, placed)


def _write(path: Path, rows: Sequence[Result]) -> None:
    write_text_atomically(path, "".join(map(as_line, rows)))
