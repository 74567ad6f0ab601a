"""An executor on SLURM: a job is a job of an array, sent by submitit, and SLURM runs those of a lost machine again."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bmtpt.errors import SettingsError
from bmtpt.parallel.fleet.graph import Failure, attempted
from bmtpt.parallel.fleet.local import ONE_THREAD

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")

HOURS = 4
"""Time limit of a job, unless $SBATCH_TIMELIMIT says another one. A job that reaches it goes on from its checkpoint."""


@dataclass(frozen=True)
class Requeued:
    """What SLURM runs: it is queued again when its time is over or it has to make room."""

    work: Callable[[Any], Any]

    def __call__(self, job: Any) -> Any:
        """Do the job."""
        return attempted(self.work, job)

    def checkpoint(self, job: Any) -> Any:
        """Return what submitit queues again; the work itself finds its checkpoint on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Slurm:
    """Does jobs as SLURM jobs of one core each. What sbatch's own variables say ($SBATCH_PARTITION, …) comes first."""

    place = "on SLURM"
    cluster = "slurm"
    """What submitit calls it; tests set "local"."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        """Note where SLURM's logs go.

        Args:
            folder: On a file system that all machines share; made when the first jobs come.
            most: Most jobs in SLURM's queue at a time; None for as many as are ready.
        """
        self._folder, self.slots = folder, most
        self._running: dict[Any, Any] = {}

    @cached_property
    def _slurm(self) -> Any:
        """submitit's executor.

        Raises:
            SettingsError: submitit is not installed, or there is no SLURM here.
        """
        try:
            import submitit
        except ImportError as error:
            raise SettingsError("running on SLURM needs submitit; run: pip install 'bmtpt[slurm]'") from error
        try:
            executor = submitit.AutoExecutor(self._folder, cluster=self.cluster)
        except RuntimeError as error:
            raise SettingsError("there is no SLURM on this machine (no srun); run this on a login node") from error
        executor.update_parameters(
            name="bmtpt",
            timeout_min=60 * HOURS,
            cpus_per_task=1,
            slurm_setup=[f"export {name}={value}" for name, value in ONE_THREAD.items()],
            slurm_additional_parameters={"requeue": True},
        )
        return executor

    def submit(self, work: Callable[[J], R], jobs: Sequence[J]) -> None:
        """Queue them as one array."""
        self._running |= dict(zip(self._slurm.map_array(Requeued(work), jobs), jobs, strict=True))

    def wait(self) -> list[tuple[Any, Any]]:
        """Return those that have ended; one that SLURM did not run again has failed."""
        while not (ended := [each for each in self._running if each.done()]):
            time.sleep(0.2)
        return [(self._running.pop(each), self._outcome(each)) for each in ended]

    def close(self) -> None:
        """Cancel what is queued or runs."""
        for each in self._running:
            each.cancel(check=False)

    def _outcome(self, ended: Any) -> Any:
        try:
            return ended.result()
        except Exception as error:
            return Failure.of(error)
