"""An executor on a Ray cluster: a job is a task, and Ray runs the tasks of a lost machine again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from bmtpt.errors import SettingsError
from bmtpt.parallel.fleet.graph import Failure, attempted

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")

ATTEMPTS_AGAIN = 3
"""How often a job is run again whose machine or process is lost."""


class RayCluster:
    """Does jobs as Ray tasks with one core each; it connects when the first ones come.

    A script that has called `ray.init` keeps its connection.
    """

    place = "on Ray"

    def __init__(self, address: str | None = None, most: int | None = None, *, gpus: bool = False) -> None:
        """Note where the cluster is.

        Args:
            address: What `ray.init` takes: "ray://HOST:PORT" (Ray Client) or "HOST:PORT"; None for $RAY_ADDRESS, the
                cluster that runs on this machine, or a new one of this machine alone.
            most: Most jobs at a time; None for twice the cluster's cores, so that it never waits for this process.
            gpus: Ask for a GPU per job, if the cluster has any.
        """
        self._address, self._most, self._gpus = address, most, gpus
        self._own = False
        self._running: dict[Any, Any] = {}

    @cached_property
    def _ray(self) -> Any:
        """Ray's module, connected.

        Raises:
            SettingsError: Ray is not installed, or there is no cluster at the address.
        """
        ray = imported_ray()
        if not ray.is_initialized():
            try:
                # What a worker has to say is in its job's failure.
                ray.init(self._address, logging_level=logging.FATAL, log_to_driver=False, include_dashboard=False)
            except (OSError, ValueError, RuntimeError) as error:
                where = self._address or os.environ.get("RAY_ADDRESS", "this machine")
                raise SettingsError(f"there is no Ray cluster at {where} ({error}); see: ray start --help") from error
            self._own = True
        return ray

    @property
    def slots(self) -> int:
        """Most jobs that should be with the cluster, which may have grown."""
        return self._most or max(1, 2 * int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, work: Callable[[J], R], jobs: Sequence[J]) -> None:
        """Hand tasks to the cluster."""
        gpus = 1 if self._gpus and self._ray.cluster_resources().get("GPU") else 0
        task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS_AGAIN)(attempted)
        shared = self._ray.put(work)
        for job in jobs:
            self._running[task.remote(shared, job)] = job

    def wait(self) -> list[tuple[Any, Any]]:
        """Return those that have ended; one that was lost too often has failed."""
        self._ray.wait([*self._running], num_returns=1)
        ended, _ = self._ray.wait([*self._running], num_returns=len(self._running), timeout=0)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def close(self) -> None:
        """Leave the cluster, which ends what ran for this process; in a connection of a script's own, cancel it.

        `force` would end a task sooner, but Ray ends this whole process where the task's answer is on its way.
        """
        if self._own:
            self._ray.shutdown()
            return
        for task in self._running:
            self._ray.cancel(task)

    def _outcome(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except Exception as error:
            return Failure.of(error)


def imported_ray() -> Any:
    """Return Ray's module, which prints pages on standard output when a machine dies unless it is told not to.

    It reads that when it is imported, so a script that has imported Ray before keeps what it asked for.

    Raises:
        SettingsError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise SettingsError("running on Ray needs the ray package; run: pip install 'bmtpt[ray]'") from error
    return ray
