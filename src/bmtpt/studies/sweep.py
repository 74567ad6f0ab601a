"""Search a study's settings on its tuning targets: a trial is a variant of the study, and its cells are the study's.

A trial runs seed by seed. After each seed a paired test (Wilcoxon's signed ranks, over targets, shots and seeds) stops
it if it is worse than the best one: cells differ far more from one another than settings do, so only scores on the same
cells can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.folder import held, made
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError, TrainingError, nearest
from bmtpt.inference.score import metric_names
from bmtpt.methods.registry import get_method
from bmtpt.parallel.fleet import require_place
from bmtpt.report.names import direction
from bmtpt.report.sweep_page import SweepTrial, best_of
from bmtpt.studies.grid import Grid
from bmtpt.studies.run import IncompleteStudyError, opened, run_grid
from bmtpt.studies.search import Search
from bmtpt.studies.sources import SOURCES
from bmtpt.studies.space import require_sweepable, with_settings
from bmtpt.studies.spec import FIXED, StudySpec
from bmtpt.tasks import load_task
from bmtpt.train.events import Listener


def sweep(
    study: StudySpec,
    folder: Path,
    listener: Listener | None = None,
    *,
    trials: int = 20,
    metric: str = "nll",
    method: str = "bmtpt",
    seed: int = 0,
    processes: int | None = None,
    on: str = "local",
    execution: Execution = AUTOMATIC,
) -> list[SweepTrial]:
    """Try settings of a study on its tuning targets until there are enough trials; return all of them.

    The settings of the best one are written as `learn.yaml` and `adapt.yaml`, for `--config` of these commands.

    Args:
        study: With a `sweep` and with targets for tuning; its other targets are not touched.
        folder: Holds the source stages, the result lines and Optuna's journal; a second call goes on.
        listener: As of `run_study`.
        trials: How many there should be in the end. The first is the study's own settings, if they are in the ranges.
        metric: What is averaged over targets, shots and seeds.
        method: Whose settings are searched.
        seed: Of the draws.
        processes: As of `run_study`, like `on` and `execution`; what is tried does not depend on it.

    Raises:
        SettingsError: The study has no sweep or no targets for tuning, one of them lacks the metric, Optuna is not
            installed, or the folder was begun with another sweep.
        TrainingError: Every trial failed.
        BmtptError: As `run_study`.
    """
    require_place(on)
    require_sweepable(study)
    if not study.sweep:
        raise SettingsError(f"study {study.name} has nothing to sweep; add 'sweep' to its file (docs/studies.md)")
    own = {"methods": (get_method(method).name,), "variants": {}, "reread": (), "sweep": {}}
    plain = study.for_tuning().model_copy(update=own)
    _require_metric(plain, metric)
    grid: Grid | None = None
    with made(folder), held(folder), opened(on, processes, folder, execution) as executor:
        search = Search(plain, study.sweep, metric, seed, folder)
        while len(search.ended()) < trials:
            trial = search.next_trial()
            scores: list[float] = []
            complete = False
            why = _impossible(plain, trial.params)
            for count in range(1, 0 if why else len(plain.seeds) + 1):  # one more each time: a study may grow
                part = {"seeds": plain.seeds[:count], "variants": {method: (trial.params,)}}
                grid = Grid(plain.model_copy(update=part), folder, execution, like=grid)
                try:
                    rows = run_grid(grid, executor, listener)
                except IncompleteStudyError as error:
                    why = error.reason
                    break
                scores = [row.value for row in rows if row.metric == metric and row.target != SOURCES]
                complete = count == len(plain.seeds)
                if search.is_worse(trial, scores):
                    break
            search.end(trial, scores, complete=complete and not why, why=why)
        found = search.trials()
        _write_best(folder, plain, found, metric)
    return found


def _impossible(study: StudySpec, settings: Mapping[str, Any]) -> str:
    """Say why settings do not go together, each of which is in its range."""
    try:
        with_settings(study, settings)
    except SettingsError as error:
        return str(error)
    return ""


def _require_metric(study: StudySpec, metric: str) -> None:
    for task in map(load_task, study.targets):
        ranking = [name for name in metric_names(task) if direction(name)]
        if metric not in ranking:
            raise SettingsError(f"target {task.name} has no score '{metric}'; {nearest(metric, ranking)}")


def _write_best(folder: Path, study: StudySpec, trials: Sequence[SweepTrial], metric: str) -> None:
    best = best_of(trials, metric)
    if best is None:
        raise TrainingError(f"none of {len(trials)} trials was completed; the first: {trials[0].why}")
    found = with_settings(study, best.settings)
    head = f"# Trial {best.number} of {len(trials)} of sweep {study.name}: mean {metric} {best.score:.4g}\n"
    files = {}
    for group in ("learn", "adapt"):
        fixed = {option.partition(".")[2] for option in FIXED if option.startswith(f"{group}.")}
        values = getattr(found, group).model_dump(mode="json", exclude=fixed)
        files[f"{group}.yaml"] = (head + yaml.safe_dump(values, sort_keys=False)).encode()
    write_files_atomically(folder, files)
