"""Leaving a Ray cluster ends the jobs that run there, whoever connected to it."""

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from bmtpt.parallel.fleet.ray import RayCluster, imported_ray


@pytest.fixture(scope="module")
def cluster():
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    imported_ray()  # before any other import of it in this process
    found = pytest.importorskip("ray.cluster_utils").Cluster()
    found.add_node(num_cpus=2, include_dashboard=False)
    yield found.address
    found.shutdown()


def long(folder):
    """Run for minutes, and keep a file for as long."""
    running = Path(folder, str(os.getpid()))
    try:
        running.touch()
        for _ in range(6_000):
            time.sleep(0.02)
    finally:
        running.unlink(missing_ok=True)


@pytest.mark.parametrize("own", [True, False], ids=["a connection of its own", "that of a script"])
def test_leaving_ends_what_runs(own, cluster, tmp_path, monkeypatch):
    ray = imported_ray()
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    if not own:
        ray.init(cluster, log_to_driver=False)
    try:
        executor = RayCluster()
        executor.submit(long, [str(tmp_path), f"{tmp_path}/."])
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        executor.close()
        assert ray.is_initialized() is not own
        until(lambda: not any(Path("/proc", each.name).exists() for each in tmp_path.iterdir()))
    finally:
        ray.shutdown()


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it took a minute"
        time.sleep(0.05)
