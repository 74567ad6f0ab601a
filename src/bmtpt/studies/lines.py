"""A study's results file: which jobs have their lines, and what a kill left of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import SettingsError
from bmtpt.results import Result, read_results, text_of
from bmtpt.studies.jobs import Job, Place, place_of

Key = tuple[str, Place]


def whole_lines(path: Path, jobs: Sequence[Job]) -> list[Result]:
    """Return the lines that the jobs have so far; what a kill left of half a line or half a job is dropped.

    Lines of other studies and of other cells stay in the file.

    Raises:
        SettingsError: The file holds a cell of the jobs with other settings: no table could tell the two apart.
    """
    if not path.is_file():
        return []
    _drop_torn_line(path)
    rows = read_results(path)
    _require_same_settings(path, rows, jobs)
    found: dict[Key, set[str]] = defaultdict(set)
    for row in rows:
        found[_key(row)].add(row.metric)
    parts = [_parts(job) for job in jobs]
    torn = {key for part in parts if not all(found[key] >= metrics for key, metrics in part.items()) for key in part}
    kept = [row for row in rows if _key(row) not in torn]
    if len(kept) < len(rows):
        _write(path, kept)
    wanted = {key for part in parts for key in part}
    return [row for row in kept if _key(row) in wanted]


def done_jobs(jobs: Sequence[Job], rows: Sequence[Result]) -> list[Job]:
    """Return the jobs whose lines are among whole lines."""
    there = {_key(row) for row in rows}
    return [job for job in jobs if (job.settings_hash, job.place) in there]


def put_in_order(path: Path, ordered: Sequence[Result]) -> None:
    """Sort a study's lines as its results are, so that the file does not tell which process was first.

    Lines of other studies and of other cells stay where they are.

    Args:
        path: The study's results file.
        ordered: All of the study's lines in it, as its plan goes.
    """
    if not ordered:
        return
    own, following = set(map(_key, ordered)), iter(ordered)
    rows = read_results(path)
    placed = [next(following) if _key(row) in own else row for row in rows]
    if placed != rows:
        _write(path, placed)


def _require_same_settings(path: Path, rows: Sequence[Result], jobs: Sequence[Job]) -> None:
    places = {place: job for job in jobs for place in job.lines}
    wanted = {key for job in jobs for key in _parts(job)}
    if odd := [row for row in rows if place_of(row) in places and _key(row) not in wanted]:
        job = places[place_of(odd[0])]
        others = " or of another list of targets" if job.beside else ""
        raise SettingsError(f"{path} holds {job.name} with other settings{others}; choose another --out")


def _parts(job: Job) -> dict[Key, frozenset[str]]:
    """Return what a job's lines hold when they are whole: metrics by key."""
    return {(job.settings_hash, place): metrics for place, metrics in job.lines.items()}


def _key(row: Result) -> Key:
    return row.settings_hash, place_of(row)


def _write(path: Path, rows: Sequence[Result]) -> None:
    write_text_atomically(path, "".join(row.model_dump_json() + "\n" for row in rows))


def _drop_torn_line(path: Path) -> None:
    whole, _, torn = text_of(path).rpartition("\n")
    if torn:
        write_text_atomically(path, whole + "\n" if whole else "")
