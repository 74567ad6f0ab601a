"""What does one job of a study in another process: everything that this process needs to know is pickled with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from bmtpt.backbone.execution import Execution
from bmtpt.methods.registry import Method, all_methods, get_method, register
from bmtpt.results import Result
from bmtpt.studies.grid import Grid
from bmtpt.studies.jobs import Job
from bmtpt.studies.spec import StudySpec


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
    """

    study: str
    folder: Path
    execution: Execution
    methods: tuple[Method, ...]

    @classmethod
    def of(cls, grid: Grid) -> Worker:
        """Return what does a grid's jobs elsewhere."""
        methods = tuple(get_method(name) for name in grid.study.methods)
        return cls(grid.study.model_dump_json(), grid.folder, grid.execution, methods)

    def __call__(self, job: Job) -> list[Result]:
        """Do a job and return its lines."""
        for method in self.methods:
            if method.name not in all_methods():
                register(method)
        with one_thread():
            return _grid(self.study, self.folder, self.execution).run(job, None)


@lru_cache(maxsize=1)
def _grid(study: str, folder: Path, execution: Execution) -> Grid:
    """Return the process's one grid: it holds the model, which is loaded once."""
    return Grid(StudySpec.model_validate_json(study), folder, execution)
