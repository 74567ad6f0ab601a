"""Many jobs at a time: a graph of jobs, and executors that do them here or in other processes."""

from bmtpt.parallel.fleet.graph import Executor, Failure, run_jobs
from bmtpt.parallel.fleet.local import Here, Processes

__all__ = ["Executor", "Failure", "Here", "Processes", "run_jobs"]
