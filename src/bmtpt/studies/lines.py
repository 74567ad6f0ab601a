"""A study's results file: which jobs have their lines, and what an interrupted run left of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import SettingsError
from bmtpt.results import Result, read_results, text_of
from bmtpt.studies.jobs import Job, Place, place_of


def whole_lines(path: Path, jobs: Sequence[Job]) -> list[Result]:
    """Return the lines that the jobs have so far; half a line and lines of half a job are dropped from the file.

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
    found: dict[Place, set[str]] = defaultdict(set)
    for row in rows:
        found[place_of(row)].add(row.metric)
    places = {place: job for job in jobs for place in job.lines}
    for row in rows:
        job = places.get(place_of(row))
        if job and row.source_seed != job.source_seed:
            raise SettingsError(
                f"{path} holds {job.name} from source seed {row.source_seed}, and this study asks for "
                f"{job.source_seed}; choose another folder"
            )
    torn = {
        place
        for job in jobs
        if not all(found[place] >= metrics for place, metrics in job.lines.items())
        for place in job.lines
    }
    kept = [row for row in rows if place_of(row) not in torn]
    if len(kept) < len(rows):
        _write(path, kept)
    return [row for row in kept if place_of(row) in places]


def done_jobs(jobs: Sequence[Job], rows: Sequence[Result]) -> list[Job]:
    """Return the jobs whose lines are among complete lines."""
    there = {place_of(row) for row in rows}
    return [job for job in jobs if job.place in there]


def put_in_order(path: Path, ordered: Sequence[Result]) -> None:
    """Sort a study's lines as its results are, so that the file does not depend on which process was first.

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
    write_text_atomically(path, "".join(row.model_dump_json() + "\n" for row in rows))
