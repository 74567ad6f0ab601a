"""Run a study cell by cell; a killed study goes on with the first cell that has no result lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bmtpt.api import evaluate, result_rows
from bmtpt.backbone.load import load_backbone
from bmtpt.files import write_text_atomically
from bmtpt.results import Result, append_results, read_results, settings_hash
from bmtpt.scoring import metric_names
from bmtpt.settings import identity_of
from bmtpt.studies.methods import Cell, Sources, run_cell
from bmtpt.studies.spec import StudySpec
from bmtpt.tasks import TaskData, load_data, load_task
from bmtpt.train.events import Listener

RESULTS = "results.jsonl"


def run_study(study: StudySpec, folder: Path, listener: Listener | None = None) -> list[Result]:
    """Run every cell that has no result yet; return all results.

    Args:
        study: What is compared.
        folder: Holds `results.jsonl` and the source-stage artifacts; a second call goes on where the first stopped.
        listener: Hears the events of every stage, each with a ``stage`` name.

    Raises:
        BmtptError: As `learn`, `fit_targets` and `evaluate`.
    """
    path = folder / RESULTS
    keys = {seed: study_hash(study, seed) for seed in study.seeds}
    sources = _load(study, study.sources)
    targets = _load(study, study.targets)
    results = whole_cells(path, keys, targets)
    done = {_cell_of(row) for row in results}
    backbone = load_backbone(study.backbone, precision=study.adapt.precision)
    for cell in cells(study, targets):
        if (cell.target.task.name, cell.shots, cell.seed, cell.method) in done:
            continue
        seed = study.source_seed(cell.seed)
        stage = Sources(study, backbone, sources, folder / "sources" / f"seed{seed}", seed, listener)
        prompt = run_cell(cell, stage, listener)
        place = prompt_folder(folder, cell.target.task.name, cell.method, cell.shots, cell.seed)
        prompt = prompt.save(place, overwrite=place.is_dir())
        evaluation = evaluate(
            backbone, prompt, cell.target.test, task=cell.target.task, max_length=study.adapt.max_length
        )
        rows = result_rows(backbone, prompt, cell.target, evaluation, study=study.name, settings_hash=keys[cell.seed])
        append_results(path, rows)
        results += rows
    return results


def prompt_folder(folder: Path, target: str, method: str, shots: int | None, seed: int) -> Path:
    """Return where a cell's prompt is kept."""
    return folder / "prompts" / f"{target}-{method}-k{shots or 'all'}-seed{seed}"


def cells(study: StudySpec, targets: tuple[TaskData, ...]) -> Iterator[Cell]:
    """Yield the cells, seeds outermost: a study that is cut short has few seeds of everything."""
    for seed in study.seeds:
        for shots in study.shots:
            for target in targets:
                for method in study.methods:
                    yield Cell(method, target, shots, seed)


def study_hash(study: StudySpec, seed: int) -> str:
    """Return the hash of everything that decides the values of a seed's cells.

    The lists of cells are left out, so that a study can grow. Source tasks go in by what they say, and the place of the
    data not at all, so that a study may be moved: every line says how its rows relate to the published ones.
    """
    lists = {"targets", "shots", "seeds", "source_seeds", "methods", "title", "data"}
    tasks = [load_task(name).model_dump(mode="json", exclude={"file", "files"}) for name in study.sources]
    facts = {name: value for name, value in identity_of(study).items() if name not in lists}
    return settings_hash({**facts, "sources": tasks, "source_seed": study.source_seed(seed)})


def whole_cells(path: Path, keys: Mapping[int, str], targets: tuple[TaskData, ...]) -> list[Result]:
    """Return a study's results so far; what a kill left of half a line or half a cell is dropped from the file."""
    if not path.is_file():
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        write_text_atomically(path, whole + "\n" if whole else "")
    rows = read_results(path)
    found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for row in rows:
        found[row.settings_hash, *_cell_of(row)].add(row.metric)
    wanted = {target.task.name: metric_names(target.task) for target in targets}
    kept = [row for row in rows if found[row.settings_hash, *_cell_of(row)] >= wanted.get(row.target, set())]
    if len(kept) < len(rows):
        write_text_atomically(path, "".join(row.model_dump_json() + "\n" for row in kept))
    return [row for row in kept if row.settings_hash == keys.get(row.seed)]


def _cell_of(row: Result) -> tuple[str, int | None, int, str]:
    return row.target, row.shots, row.seed, row.method


def _load(study: StudySpec, names: tuple[str, ...]) -> tuple[TaskData, ...]:
    return tuple(load_data(load_task(name), study.data, limits=study.limits) for name in names)
