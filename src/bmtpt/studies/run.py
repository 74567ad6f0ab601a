"""Run a study job by job, in this process or in several; an interrupted study goes on where it stopped.

Every process has one thread, so the numbers do not depend on how many processes there are: with several threads a sum's
order, and so its last digits, would depend on their number, and processes share no sums.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor, process_executor

from bmtpt.artifacts.folder import held, made, require_there
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError, TrainingError
from bmtpt.methods.registry import Method, all_methods, get_method, register
from bmtpt.results import Result, append_results
from bmtpt.studies.grid import Grid, prompt_folder
from bmtpt.studies.jobs import Job, done_jobs, in_order, put_in_order, to_do, waves, whole_lines
from bmtpt.studies.spec import StudySpec
from bmtpt.train.events import Listener

__all__ = ["RESULTS", "default_processes", "one_thread", "prompt_folder", "run_study"]

RESULTS = "results.jsonl"

MEMORY_PER_PROCESS = 4 * 2**30
"""Bytes; a process with the offline backbone was measured to hold about as much."""

Running = Generator[tuple[Job, list[Result]], None, None]


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
        running = _apart(study, folder, execution, left, processes) if apart else _here(grid, left, listener)
        with closing(running):  # ends the processes if this loop is left early
            for number, (job, rows) in enumerate(running, start=1):
                require_there(folder)
                new = [] if job in done else rows
                append_results(folder / RESULTS, new)
                results += new
                tell(number, job.name)
        results = in_order(results, jobs)
        put_in_order(folder / RESULTS, results)
    return results


def default_processes() -> int:
    """Return one process per core, as far as memory allows; one where there is a GPU, which processes would share."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
    return max(1, min(cores, memory // MEMORY_PER_PROCESS))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(grid: Grid, jobs: Sequence[Job], listener: Listener | None) -> Running:
    """Do the jobs one after the other; yield each with its lines."""
    for job in jobs:
        with one_thread():
            rows = grid.run(job, listener)
        yield job, rows


def _apart(study: StudySpec, folder: Path, execution: Execution, jobs: Sequence[Job], processes: int) -> Running:
    """Do the jobs in several processes, source stages first; yield each with its lines as it ends.

    If the caller stops, by Ctrl-C or by an error, the processes end at once.

    Raises:
        TrainingError: A process was killed.
    """
    methods = [get_method(name) for name in study.methods]
    with parallel_config("loky", inner_max_num_threads=1, initializer=_start_child, initargs=(os.getpid(), methods)):
        pool = Parallel(min(processes, len(jobs)), return_as="generator_unordered", batch_size=1)
    try:
        for wave in waves(jobs):
            yield from pool(delayed(_in_child)(study, folder, execution, job) for job in wave)
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process of the study was killed, probably because the machine ran out of memory; "
            "finished cells are kept: run the study again with fewer processes"
        ) from error
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _start_child(parent: int, methods: Sequence[Method]) -> None:
    def end_with_parent() -> None:  # a killed parent cannot end its children
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    # loky takes a process that grows by 300 MB for a leak and starts another; ours keeps a model and rows on purpose.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    for method in methods:
        if method.name not in all_methods():  # a script's own
            register(method)


def _in_child(study: StudySpec, folder: Path, execution: Execution, job: Job) -> tuple[Job, list[Result]]:
    return job, _grid(study.model_dump_json(), folder, execution).run(job, None)


@cache
def _grid(study: str, folder: Path, execution: Execution) -> Grid:
    """Return the child's one grid: it holds the model, which is loaded once."""
    return Grid(StudySpec.model_validate_json(study), folder, execution)
