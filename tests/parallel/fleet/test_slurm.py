"""SLURM's executor with submitit's own stand-in for SLURM: processes of this machine."""

from __future__ import annotations

import math
from contextlib import closing

import pytest

from bmtpt.parallel.fleet import run_jobs
from bmtpt.parallel.fleet.slurm import Requeued, Slurm

pytest.importorskip("submitit")


def test_jobs_return_what_they_found_or_why_they_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Slurm, "cluster", "local")
    with closing(Slurm(tmp_path / "logs")) as executor:
        found = dict(run_jobs({9.0: (4.0,), 4.0: (), -1.0: ()}, math.sqrt, executor))
    assert (found[4.0], found[9.0]) == (2.0, 3.0)
    assert found[-1.0].sentence.startswith("ValueError: ")
    assert "math" in found[-1.0].sentence
    assert list((tmp_path / "logs").glob("*_log.out"))


def test_what_is_running_is_cancelled_when_the_executor_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(Slurm, "cluster", "local")
    executor = Slurm(tmp_path / "logs")
    executor.submit(print, ["a job"])
    (running,) = executor._running
    executor.close()
    running.wait()
    assert running.state in ("INTERRUPTED", "FINISHED")


def test_a_job_whose_time_is_over_is_queued_again_as_it_was():
    again = Requeued(math.sqrt).checkpoint(4.0)
    assert again.result() == 2.0
