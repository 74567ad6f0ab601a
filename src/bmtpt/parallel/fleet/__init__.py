"""Many jobs at a time: a graph of jobs, and executors that do them here, in processes, on Ray or on SLURM."""

from __future__ import annotations

from pathlib import Path

from bmtpt.errors import SettingsError, nearest
from bmtpt.parallel.fleet.graph import Executor, Failure, run_jobs

__all__ = ["PLACES", "Executor", "Failure", "executor_on", "require_place", "run_jobs"]

PLACES = ("local", "ray", "slurm")
"""Where jobs run; `ray://HOST:PORT` is a place, too."""


def require_place(on: str) -> None:
    """Refuse a place that there is not.

    Raises:
        SettingsError: As said; the sentence names the nearest one.
    """
    if on not in PLACES and not on.startswith("ray://"):
        raise SettingsError(f"'on' cannot be '{on}'; {nearest(on, PLACES)} (or ray://HOST:PORT)")


def executor_on(on: str, most: int | None, logs: Path, *, gpus: bool) -> Executor:
    """Return an executor, to be closed.

    Args:
        on: One of `PLACES`, or "ray://HOST:PORT".
        most: Most jobs at a time; None for as many as there is room for, which is one here.
        logs: Folder for the logs of a cluster.
        gpus: Whether a job on a cluster that has GPUs needs one.

    Raises:
        SettingsError: What it needs is not installed or not there.
    """
    if on == "local":
        from bmtpt.parallel.fleet.local import Here, Processes

        return Processes(most) if most and most > 1 else Here()
    if on == "slurm":
        from bmtpt.parallel.fleet.slurm import Slurm

        return Slurm(logs, most)
    from bmtpt.parallel.fleet.ray import RayCluster

    return RayCluster(None if on == "ray" else on, most, gpus=gpus)
