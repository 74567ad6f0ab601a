"""What studies without a language model have in common: their jobs and their lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

from bmtpt.artifacts.card import versions
from bmtpt.results import Result, settings_hash
from bmtpt.settings import identity_of
from bmtpt.studies.jobs import Job, Place
from bmtpt.studies.spec import CollapseSpec, Contender, GaussianSpec
from bmtpt.train.events import Listener

BACKBONE = "none"
"""What the lines of these studies have as their backbone."""

Spec = TypeVar("Spec", GaussianSpec, CollapseSpec)


class Measured(NamedTuple):
    """What a job found.

    Attributes:
        figures: By metric.
        numbers: How many numbers were moved.
    """

    figures: dict[str, float]
    numbers: int
    seconds: float


class AnalyticBench(Generic[Spec]):
    """Plans and runs a study of densities; its kinds say what their targets are and how they are measured."""

    metrics: ClassVar[frozenset[str]]
    primary: ClassVar[str] = "mean_error"
    averages: ClassVar[tuple[str, ...]] = ()
    """Methods without settings, which stand beside SVGD."""

    def __init__(self, study: Spec) -> None:
        self.study: Spec = study
        self.contenders = {contender.key: contender for contender in study.contenders()}

    def settings(self) -> list[tuple[str, str, int]]:
        """Return target name, point of the variant's name, and dimension of every density."""
        raise NotImplementedError

    def measure(self, job: Job, listener: Listener | None) -> Measured:
        """Do a job; `work` is (method, target, dimension, seed)."""
        raise NotImplementedError

    def jobs(self) -> list[Job]:
        """Return the cells, seeds outermost."""
        return [
            self._job(method, variant, setting, seed)
            for seed in self.study.seeds
            for setting in self.settings()
            for method, variant in self._columns()
        ]

    def _columns(self) -> Iterator[tuple[str, str]]:
        yield from ((method, "") for method in self.averages)
        yield from self.contenders

    def _job(self, method: str, variant: str, setting: tuple[str, str, int], seed: int) -> Job:
        target, point, dimension = setting
        name = f"{point},{variant}" if variant else point
        place = Place(self.study.name, method, name, target, None, seed)
        return Job(place, self._hash(method, variant), self.metrics, (method, target, dimension, seed))

    def _hash(self, method: str, variant: str) -> str:
        contender = self.contenders.get((method, variant)) or next(iter(self.contenders.values()))
        lists = {"title", "seeds", "dimensions", "distributions"}
        return settings_hash({k: v for k, v in identity_of(contender.study).items() if k not in lists})

    def study_of(self, job: Job) -> Spec:
        """Return the study with the settings of the job's variant."""
        variant = job.place.variant.partition(",")[2]
        contender: Contender = self.contenders[job.place.method, variant]
        return contender.study  # type: ignore[no-any-return]

    def prepare(self, jobs: Sequence[Job]) -> None:
        """There is nothing that could be missing."""

    def run(self, job: Job, listener: Listener | None) -> list[Result]:
        """Measure one density with one method; return its lines."""
        found = self.measure(job, listener)
        steps = self.study_of(job).learn.steps if job.place.method not in self.averages else 0
        return [
            Result(
                **job.place._asdict(),
                backbone=BACKBONE,
                sources=(),
                metric=metric,
                value=value,
                primary=metric == self.primary,
                constant_answer=None,
                invalid_share=0.0,
                trained_parameters=found.numbers,
                trained_share=0.0,
                steps=steps,
                seconds=found.seconds,
                settings_hash=job.settings_hash,
                data="official",
                versions=versions(),
            )
            for metric, value in found.figures.items()
        ]

    def finish(self, results: Sequence[Result], folder: Path) -> None:
        """There is no picture, unless a kind draws one."""
