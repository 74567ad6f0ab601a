"""Do jobs in this process or in several, one thread each: the numbers do not depend on how many.

With several threads a sum's order, and so its last digits, would depend on their number; processes share no sums.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from bmtpt.backbone.execution import Execution
from bmtpt.errors import TrainingError
from bmtpt.methods.registry import Method, all_methods, get_method, register
from bmtpt.results import Result
from bmtpt.studies.grid import Grid
from bmtpt.studies.jobs import Job, waves
from bmtpt.studies.spec import StudySpec
from bmtpt.train.events import Listener

MEMORY_PER_PROCESS = 4 * 2**30
"""Bytes; a process with the offline backbone was measured to hold about as much."""

Running = Generator[tuple[Job, list[Result]], None, None]


def default_processes() -> int:
    """Return one process per core, as far as memory allows; one where there is a GPU, which processes would share."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
    return max(1, min(cores, memory // MEMORY_PER_PROCESS))


def run_here(grid: Grid, jobs: Sequence[Job], listener: Listener | None) -> Running:
    """Do the jobs one after the other; yield each with its lines."""
    for job in jobs:
        with one_thread():
            rows = grid.run(job, listener)
        yield job, rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_apart(study: StudySpec, folder: Path, execution: Execution, jobs: Sequence[Job], processes: int) -> Running:
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
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
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
