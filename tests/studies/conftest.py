"""Tiny studies on the tiny model.

Fixtures:
    tiny_study: Makes a study of two methods, one of them in two variants, on one target.
    known_part: Reads a study that comes with bmtpt, without the methods and options that are not there (yet).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from bmtpt.settings import LearnSettings
from bmtpt.studies import StudySpec
from bmtpt.studies.load import find_study, study_values
from bmtpt.studies.spec import MethodName

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
            "adapt": {**QUICK, "prior_std": 1.0, "start": "mean", "precision": "float32"},
            "candidates": 1,
            "limits": {"select": 4, "test": 6},
        }
        return StudySpec.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def known_part() -> Callable[[str, str], dict[str, Any]]:
    return _known_part


def _known_part(name: str, scale: str) -> dict[str, Any]:
    values = study_values(find_study(name), scale)
    if "methods" in values:
        values["methods"] = [method for method in values["methods"] if method in get_args(MethodName)]
    for method, grids in list(values.get("variants", {}).items()):
        options = [option.removeprefix("learn.") for grid in grids for option in grid if option.startswith("learn.")]
        if not set(options) <= set(LearnSettings.model_fields) or method not in values.get("methods", [method]):
            del values["variants"][method]
    return values
