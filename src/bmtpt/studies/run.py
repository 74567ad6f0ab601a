"""Run a study job by job; a killed study goes on with the first job that has no result lines."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError
from bmtpt.results import Result, append_results
from bmtpt.studies.grid import prompt_folder, study_hash
from bmtpt.studies.jobs import in_order, to_do
from bmtpt.studies.kinds import make_bench
from bmtpt.studies.lines import done_jobs, put_in_order, whole_lines
from bmtpt.studies.pool import default_processes, run_apart, run_here
from bmtpt.studies.spec import AnyStudy
from bmtpt.train.events import Listener

__all__ = ["RESULTS", "default_processes", "prompt_folder", "run_study", "study_hash"]

RESULTS = "results.jsonl"


def run_study(
    study: AnyStudy,
    folder: Path,
    listener: Listener | None = None,
    *,
    processes: int = 1,
    execution: Execution = AUTOMATIC,
) -> list[Result]:
    """Run every cell that has no result yet; return all results.

    Args:
        study: What is compared.
        folder: Holds `results.jsonl` and the source-stage artifacts; a second call goes on where the first stopped.
        listener: Hears of every job that is done; with one process, also the events of every stage. Each event has a
            ``stage`` name.
        processes: How many jobs are done side by side; the values do not depend on it. Only this process writes
            results. A script that asks for more than one must run it under ``if __name__ == "__main__"``.
        execution: How the backbone runs: device, precision, engine, memory.

    Raises:
        SettingsError: The folder holds cells of this study with other settings, or no method can answer a target.
        BmtptError: As `learn`, `fit_targets` and `evaluate`.
    """
    bench = make_bench(study, folder, execution)
    jobs = bench.jobs()
    if not jobs:
        raise SettingsError(f"study {study.name} has nothing to run: none of its methods can answer its targets")
    results = whole_lines(folder / RESULTS, jobs)
    done = set(done_jobs(jobs, results))
    left = to_do(jobs, done)
    bench.prepare(left)
    apart = processes > 1 and len(left) > 1

    def tell(done: int, name: str) -> None:
        if listener and apart:
            listener({"event": "jobs", "stage": "jobs", "step": done, "steps": len(left), "name": name})

    tell(0, f"starting {processes} processes")
    running = run_apart(study, folder, execution, left, processes) if apart else run_here(bench, left, listener)
    with closing(running):  # ends the processes if this loop is left early
        for number, (job, rows) in enumerate(running, start=1):
            new = [] if job in done else rows
            append_results(folder / RESULTS, new)
            results += new
            tell(number, job.name)
    results = in_order(results, jobs)
    put_in_order(folder / RESULTS, results)
    bench.finish(results, folder)
    return results
