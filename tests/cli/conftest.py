"""The command line as a person meets it, without a new process for each command.

Fixtures:
    bmtpt: Runs one command line; returns its exit code, standard output and standard error.
    tiny_quickstart: The shipped quickstart's study with tiny tasks, sizes and model.
    runs: A folder with `post` (posterior over `sentiment` and `pairs`) and `prompt` (adapted to `sentiment`, 8 shots).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from in_process import Ran, run_command

Command = Callable[..., Ran]


@pytest.fixture(scope="session")
def bmtpt() -> Command:
    return run_command


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_t5_folder: Path, tiny_task_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    sources = ["--source", tiny_task_folder / "sentiment.yaml", "--source", tiny_task_folder / "pairs.yaml"]
    shape = ["--prompt-length", "4", "--particles", "2", "--precision", "float32"]
    steps = ["--steps", "4", "--evaluate-every", "2"]
    learned = run_command("learn", "--backbone", tiny_t5_folder, *sources, *shape, *steps, "--out", folder / "post")
    assert learned.code == 0, learned.err
    target = ["--target", tiny_task_folder / "sentiment.yaml", "--shots", "8", "--precision", "float32"]
    adapted = run_command("adapt", "--posterior", folder / "post", *target, *steps, "--out", folder / "prompt")
    assert adapted.code == 0, adapted.err
    return folder


@pytest.fixture(scope="session")
def tiny_quickstart(tmp_path_factory: pytest.TempPathFactory, tiny_t5_folder: Path, tiny_task_folder: Path) -> Path:
    """The shipped study with tiny tasks, sizes and model."""
    import yaml

    from bmtpt.cli.quickstart_command import QUICKSTART

    values = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    steps = {"steps": 2, "evaluate_every": 2, "validation_rows": 2, "batch_size": 2}
    tasks = {name: f"{tiny_task_folder}/{name}.yaml" for name in ("pairs", "answers", "sentiment")}
    values |= {"backbone": str(tiny_t5_folder), "sources": [tasks["pairs"], tasks["answers"]]}
    values |= {"targets": [tasks["sentiment"]], "shots": [8], "limits": {"test": 6}}
    values["learn"] |= {**steps, "prompt_length": 3, "particles": 2}
    values["adapt"] |= {"steps": 2, "evaluate_every": 2, "batch_size": 2}
    values["scales"] = {"small": {}, "smallest": {"learn": {"steps": 1}}}
    path = tmp_path_factory.mktemp("quickstart") / "quickstart.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
