"""A small made-up run folder and a small made-up study: numbers without meaning, shapes as in life."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bmtpt.posterior.positions import written_positions
from bmtpt.results import Result, append_results
from bmtpt.sealed import sealed_line

Make = Callable[..., Result]


def make(method: str, target: str, seed: int, value: float, **changes: Any) -> Result:
    """Return a result line; `changes` replace its other fields."""
    fields: dict[str, Any] = {
        "study": "small",
        "method": method,
        "backbone": "tiny-t5",
        "sources": ("sst2", "mrpc"),
        "target": target,
        "shots": 32,
        "seed": seed,
        "metric": "accuracy",
        "value": value,
        "primary": True,
        "constant_answer": 50.0,
        "invalid_share": 0.0,
        "trained_parameters": 1234,
        "trained_share": 0.0005,
        "steps": 20,
        "seconds": 3.5,
        "settings_hash": f"{method}-{target}",
        "data": "cut",
        "versions": {"torch": "2.13"},
    }
    return Result(**(fields | changes))


@pytest.fixture
def result() -> Make:
    return make


@pytest.fixture(scope="session")
def study() -> list[Result]:
    """Three methods, three targets, four seeds."""
    rng = np.random.default_rng(0)
    levels = {("pt", "cb"): 70.0, ("pt", "rte"): 55.0, ("pt", "paws"): 60.0}
    levels |= {("spot", "cb"): 72.0, ("spot", "rte"): 54.0, ("spot", "paws"): 66.0}
    levels |= {("bmtpt", "cb"): 75.0, ("bmtpt", "rte"): 53.0, ("bmtpt", "paws"): 64.0}
    return [
        make(method, target, seed, level + rng.normal(0, 2))
        for (method, target), level in levels.items()
        for seed in range(4)
    ]


@pytest.fixture
def varied() -> list[Result]:
    """`pt`, and `bmtpt` with M = 1, 5, 15, on two targets and four seeds."""
    rng = np.random.default_rng(0)
    rows = [make("pt", target, seed, 60 + rng.normal()) for target in ("cb", "rte") for seed in range(4)]
    for M in (1, 5, 15):
        for target in ("cb", "rte"):
            rows += [make("bmtpt", target, seed, 60 + M + rng.normal(), variant=f"particles={M}") for seed in range(4)]
    return rows


def _losses(rng: np.random.Generator, step: int, tasks: list[str], M: int) -> dict[str, list[float]]:
    return {task: (0.2 + 2 * np.exp(-step / 40) * rng.uniform(0.8, 1.2, M)).tolist() for task in tasks}


def events(tasks: list[str], M: int = 3, steps: int = 120, mean_nll: float = 2.4) -> list[dict[str, Any]]:
    """Return the events of a source run whose mean is worthless."""
    rng = np.random.default_rng(1)
    lines: list[dict[str, Any]] = [{"event": "start", "unknown": True}]
    for step in range(1, steps + 1):
        lines.append({"event": "step", "step": step, "loss": _losses(rng, step, tasks, M), "lr": 0.3})
        if step % 20:
            continue
        own = _losses(rng, step, tasks, M)
        mean = dict.fromkeys(tasks, mean_nll)
        positions = written_positions(rng.normal(size=(M, 8)) + step / 20)
        found = {"mean_nll": mean, "particle_nll": own, "positions": positions}
        lines.append({"event": "validation", "step": step, "score": 1.0, **found})
        D = rng.uniform(5, 9, (M, M))
        D = (D + D.T) / 2 * (1 - np.eye(M))
        figures = {
            "bandwidth": 40 + step / 10,
            "spread": 11.7,
            "mean_rms": 7.3,
            "repulsion_to_drive": 1e-4 * step,
            "kernel_rank": 2.0,
            "distances": D.tolist(),
            "kernel": np.exp(-(D**2) / 50).tolist(),
            "stein_discrepancy": None,
            "particle_rms": [13.8] * M,
        }
        warning = "The posterior mean lies in no mode <b>here</b>."
        lines.append({"event": "diagnostics", "step": step, "diagnostics": figures, "warnings": [warning]})
    return [*lines, {"event": "end", "steps": steps}]


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory: pytest.TempPathFactory, study: list[Result]) -> Path:
    """A posterior's folder; one source task is called `<script>alert(1)</script>`."""
    folder = tmp_path_factory.mktemp("runs") / "source run"
    write_run(folder, ["sst2", "<script>alert(1)</script>", "$x_1"])
    append_results(folder / "results.jsonl", study)
    return folder


@pytest.fixture
def run_folder(pristine_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(pristine_folder, tmp_path / pristine_folder.name))


def write_run(folder: Path, tasks: list[str], M: int = 3) -> None:
    folder.mkdir(parents=True)
    particles = np.random.default_rng(2).normal(size=(M, 5, 8)).astype(np.float32)
    save_file({"particles": particles}, folder / "posterior.safetensors")
    card = {
        "format_version": 1,
        "kind": "posterior",
        "backbone": {"name": "tiny-t5", "fingerprint": "0123456789abcdef", "parameters": 100_000, "d_model": 8},
        "sources": tasks,
        "settings": {"particles": M, "nested": {"kernel": "rbf"}},
        "steps": 120,
        "seconds": 12.34,
        "versions": {"torch": "2.13"},
        "weights_sha256": hashlib.sha256((folder / "posterior.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(map(sealed_line, events(tasks, M))), encoding="utf-8")
