"""What does one job of a study in another process, here or on another machine: all that it needs to know is pickled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from socket import gethostname

import torch

from bmtpt.artifacts import folder as locks
from bmtpt.backbone.execution import Execution
from bmtpt.errors import SettingsError
from bmtpt.methods.registry import Method, all_methods, get_method, register
from bmtpt.results import Result
from bmtpt.studies.grid import Grid
from bmtpt.studies.identity import IDENTITY
from bmtpt.studies.jobs import Job
from bmtpt.studies.spec import StudySpec

LEASE = 120.0
"""Seconds to wait for a source stage's lock: a shared file system frees those of a lost machine after 90."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Worker:
    """Does jobs of a study.

    Attributes:
        study: As JSON.
        methods: Those of the study, which a script may have registered itself.
        working_folder: Where paths that are not absolute begin.
        elsewhere: It may run on another machine.
    """

    study: str
    folder: Path
    execution: Execution
    methods: tuple[Method, ...]
    working_folder: Path
    elsewhere: bool

    @classmethod
    def of(cls, grid: Grid, *, elsewhere: bool) -> Worker:
        """Return what does a grid's jobs in other processes."""
        methods = tuple(get_method(name) for name in grid.study.methods)
        return cls(grid.study.model_dump_json(), grid.folder, grid.execution, methods, Path.cwd(), elsewhere)

    def __call__(self, job: Job) -> list[Result]:
        """Do a job and return its lines.

        Raises:
            SettingsError: This machine does not see the study's folder.
            BmtptError: As `Grid.run`.
        """
        if self.elsewhere:
            self._settle()
        for method in self.methods:
            if method.name not in all_methods():
                register(method)
        with one_thread():
            return _grid(self.study, self.folder, self.execution).run(job, None)

    def _settle(self) -> None:
        """Make another machine's process one of the study's."""
        with suppress(OSError):
            os.chdir(self.working_folder)
        folder = self.working_folder / self.folder
        if not (Path.cwd() == self.working_folder and (folder / IDENTITY).is_file()):
            raise SettingsError(
                f"{gethostname()} does not see {folder}, or not the folder that the study was started in; Ray and "
                "SLURM need both on a file system that all machines share"
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        locks.PATIENCE = LEASE


@lru_cache(maxsize=1)
def _grid(study: str, folder: Path, execution: Execution) -> Grid:
    """Return the process's one grid, which keeps the model of the one before it: it is loaded once."""
    found = Grid(StudySpec.model_validate_json(study), folder, execution, like=_LAST[-1] if _LAST else None)
    _LAST[:] = [found]
    return found


_LAST: list[Grid] = []
