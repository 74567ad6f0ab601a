"""Tiny studies on the tiny model.

Fixtures:
    tiny_study: Makes a study of two methods, one of them in two variants, on one target.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bmtpt.studies import StudySpec

QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
SOURCE = {**QUICK, "prompt_length": 3, "validation_rows": 2}


@pytest.fixture(scope="session")
def tiny_study(tiny_t5_folder: Path, tiny_task_folder: Path) -> Callable[..., StudySpec]:
    def make(**changes: Any) -> StudySpec:
        values = {
            "name": "tiny",
            "backbone": str(tiny_t5_folder),
            "sources": [str(tiny_task_folder / "sentiment.yaml"), str(tiny_task_folder / "answers.yaml")],
            "targets": [str(tiny_task_folder / "pairs.yaml")],
            "shots": [8],
            "seeds": [0],
            "methods": ["pt", "bmtpt"],
            "variants": {"bmtpt": [{"learn.particles": [1, 2]}]},
            "learn": {**SOURCE, "particles": 2},
            "source_prompt": {**SOURCE, "particles": 1},
            "adapt": {**QUICK, "prior_std": 1.0, "start": "mean"},
            "candidates": 1,
            "limits": {"select": 4, "test": 6},
        }
        return StudySpec.model_validate(values | changes)

    return make
