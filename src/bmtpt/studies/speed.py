"""Fit a study to the machine: time a few steps of its source stage, then take the largest of its scales in time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.backbone import Backbone
from bmtpt.backbone.execution import Execution
from bmtpt.errors import SettingsError
from bmtpt.sealed import read_sealed, sealed_line
from bmtpt.stages.source import learn
from bmtpt.studies.load import load_study
from bmtpt.studies.spec import StudySpec
from bmtpt.studies.worker import one_thread
from bmtpt.tasks import load_data, load_task
from bmtpt.yaml_files import read_yaml

CHOICE = "scale.json"
"""File of a study's folder that says which scale was chosen, so that a second run gives the same numbers."""

TIMED_STEPS = 4


class Sized(NamedTuple):
    """A study at the scale that was chosen for a machine.

    Attributes:
        seconds_per_step: Of the source stage, as it was timed.
        seconds: What the source stage should take.
    """

    study: StudySpec
    scale: str
    seconds_per_step: float
    seconds: float


def sized_study(path: Path, folder: Path, budget: float, execution: Execution) -> Sized:
    """Return a study at the first of its scales whose source stage fits in a budget, or at the last if none does.

    The choice is kept in ``folder``: a second call times nothing and returns the same.

    Args:
        path: A study's file that lists its scales from the largest to the smallest.
        budget: Seconds for the source stage.
        execution: How the backbone runs.

    Raises:
        SettingsError: The folder holds a scale that the study does not have.
    """
    scales = list(read_yaml(path)["scales"])
    studies: dict[str, StudySpec] = {scale: load_study(path, scale) for scale in scales}
    file = folder / CHOICE
    kept = read_sealed(file, SettingsError)
    try:
        step = float(kept["seconds_per_step"]) if kept else seconds_per_step(studies[scales[0]], execution)
        fitting = [scale for scale in scales if step * studies[scale].learn.steps <= budget]
        chosen = str(kept["scale"]) if kept else [*fitting, scales[-1]][0]
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{file} names no scale and its speed; delete it to have it measured again") from error
    if chosen not in studies:
        raise SettingsError(f"{file} names scale '{chosen}', which {path.name} lacks; choose another folder")
    write_text_atomically(file, sealed_line({"scale": chosen, "seconds_per_step": step}))
    return Sized(studies[chosen], chosen, step, step * studies[chosen].learn.steps)


def seconds_per_step(study: StudySpec, execution: Execution) -> float:
    """Train a study's source stage for a few steps on one thread, keep nothing, and return the seconds of one step."""
    few = {"steps": TIMED_STEPS + 1, "evaluate_every": TIMED_STEPS + 1, "validation_rows": 1}
    settings = study.learn.model_copy(update=few)
    sources = [load_data(load_task(name), study.data, limits=study.limits) for name in study.sources]
    ends: list[float] = []

    def clock(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            ends.append(time.perf_counter())

    with one_thread():
        learn(Backbone.from_pretrained(study.backbone, **execution._asdict()), sources, settings, listener=clock)
    return (ends[-1] - ends[0]) / TIMED_STEPS
