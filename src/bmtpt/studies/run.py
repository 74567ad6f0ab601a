"""Run a study job by job; an interrupted study goes on with the first job that has no result lines."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bmtpt.artifacts.folder import held, made
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError
from bmtpt.results import Result, append_results
from bmtpt.studies.grid import Grid, prompt_folder
from bmtpt.studies.jobs import done_jobs, in_order, put_in_order, to_do, whole_lines
from bmtpt.studies.parallel import default_processes, run_apart, run_here
from bmtpt.studies.spec import StudySpec
from bmtpt.train.events import Listener

__all__ = ["RESULTS", "default_processes", "prompt_folder", "run_study"]

RESULTS = "results.jsonl"


def run_study(
    study: StudySpec,
    folder: Path,
    listener: Listener | None = None,
    *,
    processes: int = 1,
    execution: Execution = AUTOMATIC,
) -> list[Result]:
    """Run every cell that has no result yet; return all results.

    Args:
        study: What is compared.
        folder: Holds `results.jsonl`, the source stages and the prompts; a second call goes on where the first stopped.
        listener: Hears of every job that is done; with one process, also the events of every stage. Each event has a
            ``stage`` name.
        processes: How many jobs are done at a time; the values do not depend on it. Only this process writes results.
        execution: How the backbone runs: device, precision, engine, memory.

    Raises:
        SettingsError: The folder was begun with another study, or no method can answer a target.
        ArtifactError: Another process is working in the folder.
        BmtptError: As `learn`, `fit_method` and `evaluate`.
    """
    grid = Grid(study, folder, execution)
    jobs = grid.jobs()
    if not jobs:
        raise SettingsError(f"study {study.name} has nothing to run: none of its methods can answer its targets")
    grid.require_feasible()
    with made(folder), held(folder):
        grid.claim_folder()
        results = whole_lines(folder / RESULTS, jobs)
        done = set(done_jobs(jobs, results))
        left = to_do(jobs, done)
        apart = processes > 1 and len(left) > 1

        def tell(done: int, name: str) -> None:
            if listener and apart:
                listener({"event": "jobs", "stage": "jobs", "step": done, "steps": len(left), "name": name})

        tell(0, f"starting {processes} processes")
        running = run_apart(study, folder, execution, left, processes) if apart else run_here(grid, left, listener)
        with closing(running):  # ends the processes if this loop is left early
            for number, (job, rows) in enumerate(running, start=1):
                new = [] if job in done else rows
                append_results(folder / RESULTS, new)
                results += new
                tell(number, job.name)
        results = in_order(results, jobs)
        put_in_order(folder / RESULTS, results)
    return results
