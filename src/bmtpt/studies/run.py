"""Run a study job by job, in this process or in several; an interrupted study goes on where it stopped.

Every process has one thread, so the numbers do not depend on how many processes there are: with several threads a sum's
order, and so its last digits, would depend on their number, and processes share no sums.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.artifacts.folder import held, made, require_there
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError, TrainingError
from bmtpt.parallel.fleet import Executor, Failure, executor_on, require_place, run_jobs
from bmtpt.parallel.fleet.local import Here
from bmtpt.results import Result, append_results
from bmtpt.studies.grid import Grid, prompt_folder
from bmtpt.studies.jobs import Job, done_jobs, in_order, put_in_order, stages_first, to_do, whole_lines, without_written
from bmtpt.studies.spec import StudySpec
from bmtpt.studies.worker import Worker, one_thread
from bmtpt.train.events import Listener

__all__ = ["FAILED", "RESULTS", "IncompleteStudyError", "default_processes", "prompt_folder", "run_study"]

RESULTS = "results.jsonl"
FAILED = "failed.log"
"""Tracebacks of the jobs that failed in the last run."""
LOGS = "slurm"
"""Folder of SLURM's own logs."""

MEMORY_PER_PROCESS = 4 * 2**30
"""Bytes; a process with the offline backbone was measured to hold about as much."""

NAMED = 3
"""Most failed jobs that one sentence names."""


class IncompleteStudyError(TrainingError):
    """Some jobs of a study failed, and all that do not need them are done.

    Attributes:
        results: Of the jobs that are done.
        reason: Why the first one failed.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, results: Sequence[Result] = (), reason: str = "") -> None:
        super().__init__(sentence)
        self.results = list(results)
        self.reason = reason


def run_study(
    study: StudySpec,
    folder: Path,
    listener: Listener | None = None,
    *,
    processes: int | None = None,
    on: str = "local",
    execution: Execution = AUTOMATIC,
) -> list[Result]:
    """Run every cell that has no result yet; return all results.

    Args:
        study: What is compared.
        folder: Holds `results.jsonl`, the source stages and the prompts; a second call goes on where the first stopped.
        listener: Hears of every job that is done; with one process, also the events of every stage. Each event has a
            ``stage`` name.
        processes: How many jobs are done at a time; None: one, in this process, or as many as a cluster has room for.
            The values do not depend on it. Only this process writes results.
        on: Where the jobs run: "local", "ray", "ray://HOST:PORT" or "slurm". Elsewhere than here, the folder must be on
            a file system that all machines share.
        execution: How the backbone runs: device, precision, engine, memory.

    Raises:
        SettingsError: The folder was begun with another study, no method can answer a target, there is no such place to
            run, or a machine there does not see the folder.
        ArtifactError: Another process is working in the folder.
        IncompleteStudyError: Jobs failed, and all that do not need them are done.
        BmtptError: As `learn`, `fit_method` and `evaluate`, for what concerns every job.
    """
    require_place(on)
    grid = Grid(study, folder, execution)
    processes = processes and min(processes, max(1, len(grid.jobs())))
    with made(folder), held(folder), opened(on, processes, folder, execution) as executor:
        return run_grid(grid, executor, listener)


@contextmanager
def opened(on: str, processes: int | None, folder: Path, execution: Execution) -> Iterator[Executor]:
    """Yield what does the jobs of studies in a folder; what it runs ends with the block. Raises as `executor_on`."""
    with closing(executor_on(on, processes, folder / LOGS, gpus=execution.device != "cpu")) as executor:
        yield executor


def run_grid(grid: Grid, executor: Executor, listener: Listener | None = None) -> list[Result]:
    """Run every cell of a study that has no result yet; the caller holds its folder. See `run_study`."""
    jobs, folder = grid.jobs(), grid.folder
    if not jobs:
        raise SettingsError(f"study {grid.study.name} has nothing to run: none of its methods can answer its targets")
    grid.require_feasible()
    grid.claim_folder()
    results = whole_lines(folder / RESULTS, jobs)
    done = done_jobs(jobs, results)
    left = without_written(to_do(jobs, done), results)
    failed: dict[Job, Failure] = {}
    _note_failures(folder, failed)
    untried = len(left)
    for job, outcome in _running(grid, left, executor, listener):
        untried -= 1
        require_there(folder)
        if isinstance(outcome, Failure):
            failed[job] = outcome
            _note_failures(folder, failed)
        elif job not in done:
            append_results(folder / RESULTS, outcome)
            results += outcome
    results = in_order(results, jobs)
    put_in_order(folder / RESULTS, results)
    if failed:
        sentence = _what_failed(folder, [*failed], len(left), untried)
        raise IncompleteStudyError(sentence, results, next(iter(failed.values())).sentence)
    return results


def _running(
    grid: Grid, jobs: Sequence[Job], executor: Executor, listener: Listener | None
) -> Iterator[tuple[Job, list[Result] | Failure]]:
    """Do jobs and yield each as it ends; a single one is not worth a process of its own on this machine."""
    elsewhere = bool(executor.place)
    if not jobs or (len(jobs) == 1 and not elsewhere):
        executor = Here()
    if isinstance(executor, Here):
        yield from run_jobs({job: job.needs for job in jobs}, _here(grid, listener), executor)
        return

    def tell(done: int, name: str) -> None:
        if listener:
            listener({"event": "jobs", "stage": "jobs", "step": done, "steps": len(jobs), "name": name})

    tell(0, f"starting {executor.place or f'{executor.slots} processes'}")
    needs = {job: job.needs for job in stages_first(jobs)}
    work = Worker.of(grid, elsewhere=elsewhere)
    for number, (job, outcome) in enumerate(run_jobs(needs, work, executor), start=1):
        yield job, outcome
        tell(number, job.name)


def _here(grid: Grid, listener: Listener | None) -> Callable[[Job], list[Result]]:
    def work(job: Job) -> list[Result]:
        with one_thread():
            return grid.run(job, listener)

    return work


def default_processes() -> int:
    """Return one process per core, as far as memory allows; one where there is a GPU, which processes would share."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
    return max(1, min(cores, memory // MEMORY_PER_PROCESS))


def _note_failures(folder: Path, failed: Mapping[Job, Failure]) -> None:
    """Say that the last of these jobs failed, and keep the tracebacks of all; none removes those of the run before."""
    if not failed:
        (folder / FAILED).unlink(missing_ok=True)
        return
    *_, (job, failure) = failed.items()
    logging.getLogger("bmtpt").warning("%s failed: %s", job.name, failure.sentence)
    traces = [f"{job.name}\n{failure.trace}\n" for job, failure in failed.items()]
    write_text_atomically(folder / FAILED, "".join(traces))


def _what_failed(folder: Path, failed: Sequence[Job], jobs: int, untried: int) -> str:
    names = "; ".join(job.name for job in failed[:NAMED]) + (
        f" and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
    )
    waiting = f", and {untried:,} that need them were not tried" if untried else ""
    return (
        f"{len(failed):,} of {jobs:,} jobs failed{waiting}: {names}; {folder / FAILED} says why; "
        "the same command tries them again"
    )
