"""Do jobs in this process or in several, one thread each: the numbers are the same whatever their number is.

Threads would share the additions of one product out, and a sum depends on its order; processes share nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

import torch

from bmtpt.backbone.execution import Execution
from bmtpt.errors import TrainingError
from bmtpt.results import Result
from bmtpt.studies.jobs import Bench, Job
from bmtpt.studies.kinds import make_bench
from bmtpt.studies.spec import AnyStudy
from bmtpt.train.events import Listener

# OMP_WAIT_POLICY: waiting threads must sleep, not spin (see bmtpt.cli).
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
MEMORY_PER_PROCESS = 4 * 2**30
"""Bytes; a process with the offline backbone was seen to hold about as much."""

Done = tuple[Job, list[Result]]
Running = Generator[Done, None, None]


def default_processes() -> int:
    """Return one process per core, as far as memory goes; one where there is a GPU, which processes would share."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _memory() // MEMORY_PER_PROCESS))


def run_here(bench: Bench, jobs: Sequence[Job], listener: Listener | None) -> Running:
    """Do the jobs one after the other."""
    for job in jobs:
        with one_thread():
            rows = bench.run(job, listener)
        yield job, rows


def run_apart(study: AnyStudy, folder: Path, execution: Execution, jobs: Sequence[Job], processes: int) -> Running:
    """Do the jobs in several processes, each as soon as what it needs is done; yield them as they end.

    If the caller stops, by Ctrl-C or by an error, the processes end at once.
    """
    others = set(multiprocessing.active_children())
    with (
        _environment(CHILD_ENVIRONMENT),
        ProcessPoolExecutor(
            min(processes, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(study, folder, execution),
        ) as pool,
    ):
        try:
            yield from _as_they_end(pool, jobs)
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise  # leaving the pool waits for them


def _as_they_end(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> Iterator[Done]:
    chosen, done = set(jobs), set[Job]()
    waiting, running = list(jobs), dict[Future[list[Result]], Job]()
    while waiting or running:
        ready = [job for job in waiting if all(need in done or need not in chosen for need in job.needs)]
        waiting = [job for job in waiting if job not in set(ready)]
        ready.sort(key=lambda job: not job.on_demand)  # many wait for a source stage, nothing for a cell
        running |= {pool.submit(_in_child, job): job for job in ready}
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            rows = _result(future)
            done.add(job)
            yield job, rows


def _result(future: Future[list[Result]]) -> list[Result]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process of the study was ended from outside, most likely for want of memory; "
            "what is done is kept: give the same command again with fewer --jobs"
        ) from error


# In a child process

_benches: list[Bench] = []
"""The child's one bench, made when the child starts: it holds the model, which is loaded once."""


def _start(study: AnyStudy, folder: Path, execution: Execution) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _benches.append(make_bench(study, folder, execution))


def _end_with_parent() -> None:
    """A killed parent cannot end its children, and a child that waits for work would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _in_child(job: Job) -> list[Result]:
    return _benches[0].run(job, None)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that children inherit: OpenMP reads them when torch is imported, before any code of ours runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _memory() -> int:
    """Return the machine's memory in bytes, or what is enough where it cannot be asked for."""
    if not hasattr(os, "sysconf"):
        return 2**63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
