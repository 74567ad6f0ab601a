"""A study on a Ray cluster has the lines that it has here; a machine that is lost takes none of them with it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from importlib.util import find_spec

import pytest

from bmtpt.artifacts import folder as locks
from bmtpt.errors import SettingsError
from bmtpt.parallel.fleet.ray import imported_ray
from bmtpt.results import read_results
from bmtpt.sealed import line_values
from bmtpt.studies import run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.run import RESULTS
from bmtpt.studies.worker import Worker

TIMES = ("seconds", "predict_seconds")


def file_without_times(folder):
    """Return a results file's lines as they stand, without what a clock wrote and the seal over it."""
    lines = []
    for line in (folder / RESULTS).read_text().splitlines():
        values = {key: value for key, value in line_values(line).items() if key not in TIMES}
        if values["metric"] == "seconds":
            values.pop("value")
        lines.append(json.dumps(values))
    return lines


@pytest.fixture
def ray_cluster(monkeypatch):
    """Three machines with a core each. With ports of their own, none waits for its helpers, which start slowly."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    ray = imported_ray()  # before any other import of it in this process
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    cluster = cluster_utils.Cluster()
    nodes = [
        cluster.add_node(num_cpus=1, include_dashboard=False, **dict(zip(names, free_ports(3), strict=True)))
        for _ in range(3)
    ]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def free_ports(count):
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in held]


def test_a_machine_that_is_lost_mid_study_changes_no_line_and_prints_none(tiny_study, tmp_path, ray_cluster, capfd):
    cluster, nodes = ray_cluster
    study = tiny_study(seeds=[0, 1, 2, 3], methods=["pt"], variants={})
    heard = []

    def lose_one(event):
        heard.append(event)
        if event["step"] == 1:
            cluster.remove_node(nodes[1], allow_graceful=False)

    found = run_study(study, tmp_path / "ray", lose_one, on="ray")
    assert "raylet" not in capfd.readouterr().out
    run_study(study, tmp_path / "here")
    assert file_without_times(tmp_path / "ray") == file_without_times(tmp_path / "here")
    assert read_results(tmp_path / "ray" / RESULTS) == found
    assert [event["step"] for event in heard] == [0, 1, 2, 3, 4]


def test_where_there_is_no_slurm_the_sentence_says_so(tiny_study, tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(SettingsError, match="there is no SLURM on this machine"):
        run_study(tiny_study(), tmp_path / "run", on="slurm")


@pytest.mark.parametrize(("package", "on"), [("ray", "ray"), ("submitit", "slurm")])
def test_a_package_that_is_missing_is_named_with_the_command_that_adds_it(
    package, on, tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(SettingsError, match=rf"pip install 'bmtpt\[{on}\]'"):
        run_study(tiny_study(), tmp_path / "run", on=on)


def test_a_place_that_there_is_not_is_refused_with_the_nearest_one(tiny_study, tmp_path):
    with pytest.raises(SettingsError, match="'on' cannot be 'slrum'; did you mean 'slurm'"):
        run_study(tiny_study(), tmp_path / "run", on="slrum")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_does_not_see_the_studys_folder_says_so(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", locks.PATIENCE)  # `_settle` raises it, in this process
    grid = Grid(tiny_study(), tmp_path / "only-here")
    worker = Worker.of(grid, elsewhere=True)
    with pytest.raises(SettingsError, match=r"does not see .*only-here.* Ray and SLURM need both on a file system"):
        worker(grid.jobs()[0])
    grid.claim_folder()
    worker._settle()
    monkeypatch.setattr(os, "chdir", lambda _: None)  # the folder that relative paths begin at is not there
    monkeypatch.setattr("bmtpt.studies.worker.Path.cwd", lambda: tmp_path)
    with pytest.raises(SettingsError, match="does not see"):
        worker(grid.jobs()[0])
