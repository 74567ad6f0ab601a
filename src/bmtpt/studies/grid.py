"""Studies of prompts: methods × variants × targets × shots × seeds, and the source stages that they share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.backbone import Backbone
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.errors import SettingsError
from bmtpt.inference.score import metric_names
from bmtpt.methods.registry import get_method
from bmtpt.methods.weights import TunedModel
from bmtpt.results import Result, settings_hash
from bmtpt.settings import identity_of
from bmtpt.stages.baselines import Trained
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.source import start_settings
from bmtpt.studies.feasible import require_feasible
from bmtpt.studies.jobs import Job, Place
from bmtpt.studies.source_lines import SOURCES, stage_lines, stage_metrics, stage_name
from bmtpt.studies.sources import START_STAGE, Cell, Sources, Stage, run_cell, stages
from bmtpt.studies.spec import Contender, StudySpec
from bmtpt.studies.variants import SOURCE_STAGE
from bmtpt.tasks import TaskData, TaskSpec, load_data, load_task
from bmtpt.train.events import Listener

PROMPT_SETTINGS = "settings_hash.txt"
"""File of a kept prompt's folder that says which settings it was trained with."""

TARGETS = "targets.json"
"""File of a study's folder that says what each target's task was."""

LISTS = {"targets", "tuning", "shots", "seeds", "source_seeds", "methods", "title", "data"}


def study_hash(study: StudySpec, seed: int) -> str:
    """Return the hash of everything that decides the values of a seed's cells.

    The lists of cells are left out, so that a study can grow. Source tasks go in by what they say, and the place of the
    data not at all, so that a study may be moved: every line says how its rows relate to the published ones. Targets
    that are trained together decide each other's values: they go in like sources.
    """
    decisive = set(StudySpec.model_fields) - LISTS
    facts = {name: value for name, value in identity_of(study).items() if name in decisive}
    if study.together:
        facts["targets"] = _definitions(study.targets)
    return settings_hash({**facts, "sources": _definitions(study.sources), "source_seed": study.source_seed(seed)})


def prompt_folder(folder: Path, target: str, method: str, shots: int | None, seed: int, variant: str = "") -> Path:
    """Return where a cell's prompt is kept."""
    point = re.sub(r"[^\w=.,-]", "_", f"-{variant}") if variant else ""
    return folder / "prompts" / f"{target}-{method}{point}-k{shots or 'all'}-seed{seed}"


class GridBench:
    """Plans and runs a study of prompts.

    Attributes:
        study: With its variants.
        folder: Holds the source stages and the prompts.
        execution: How the backbone runs.
    """

    def __init__(self, study: StudySpec, folder: Path, execution: Execution = AUTOMATIC) -> None:
        self.study = study
        self.folder = folder
        self.execution = execution
        self.contenders = {contender.key: contender for contender in study.contenders()}
        self._stages: dict[str, Job] = {}
        self._hashes: dict[tuple[tuple[str, str], int], str] = {}
        self._loaded: dict[str, TaskData] = {}
        self._backbone: Backbone | None = None

    # The plan

    def jobs(self) -> list[Job]:
        """Return source stages and cells, seeds outermost: a study that is cut short has few seeds of everything."""
        found: dict[Job, None] = {}
        for seed in self.study.seeds:
            for shots in self.study.shots:
                for target in self.study.targets:
                    for contender in _by_backbone(self._able(target)):
                        found |= dict.fromkeys(self._cell_jobs(contender, target, shots, seed))
        return list(found)

    def _able(self, target: str) -> list[Contender]:
        """Return who can run on a target: free answers have no average, so there is no ensemble of them."""
        averages = bool(self.tasks[target].fixed_words)
        return [each for each in self.contenders.values() if averages or not get_method(each.method).label_words_only]

    def _cell_jobs(self, contender: Contender, target: str, shots: int | None, seed: int) -> Iterator[Job]:
        """Yield a cell behind what it needs; it is the same one for all targets that are trained together."""
        names = [self.tasks[name].name for name in self.study.sources]
        needs: list[Job] = []
        for stage in stages(get_method(contender.method), contender.study, names):
            rests_on = () if stage[0] == "prompt" else tuple(needs)
            needs.append(self._stage_job(contender, stage, self.study.source_seed(seed), rests_on))
        yield from needs
        targets = self.study.targets if contender.study.together else (target,)
        lines = {
            Place(self.study.name, *contender.key, task.name, shots, seed): frozenset(metric_names(task))
            for task in (self.tasks[name] for name in targets)
        }
        (place, metrics), *beside = lines.items()
        work = ("cell", contender.key, targets)
        yield Job(place, self._hash(contender, seed), metrics, work, tuple(needs), beside=tuple(beside))

    def _stage_job(self, contender: Contender, stage: Stage, seed: int, rests_on: tuple[Job, ...]) -> Job:
        """Return the job of a source stage; contenders with the same source settings share it."""
        study = contender.study
        if stage == START_STAGE:
            study = study.model_copy(update={"learn": start_settings(study.learn)})
        own = {"sources": _definitions(study.sources), "stage": stage, "seed": seed}
        facts = {**_source_facts(study), **_stage_facts(study, stage), **own}
        key = settings_hash(facts)
        if key not in self._stages:
            decisive = (*SOURCE_STAGE, "options") if stage[0] == "own" else SOURCE_STAGE
            variant = contender.variant.name_of(decisive)
            place = Place(self.study.name, stage_name(stage, study), variant, SOURCES, None, seed)
            work = ("stage", contender.key, stage)
            self._stages[key] = Job(place, key, stage_metrics(stage, study), work, rests_on, on_demand=True)
        return self._stages[key]

    @cached_property
    def tasks(self) -> dict[str, TaskSpec]:
        """Tasks by their names in the study."""
        return {name: load_task(name) for name in (*self.study.sources, *self.study.targets)}

    def _hash(self, contender: Contender, seed: int) -> str:
        key = contender.key, self.study.source_seed(seed)
        if key not in self._hashes:
            self._hashes[key] = study_hash(contender.study, seed)
        return self._hashes[key]

    # The work

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Check the methods and load all rows, so that what cannot be is named before anything is trained."""
        cells = [self.contenders[job.work[1]] for job in jobs if job.work[0] == "cell"]
        require_feasible((cell.method, cell.study.backbone) for cell in cells)
        targets = self._same_targets()
        if jobs:
            for name in self.tasks:
                self.data(name)
            write_text_atomically(self.folder / TARGETS, json.dumps(targets, indent=1) + "\n")

    def _same_targets(self) -> dict[str, str]:
        """Return what every target is; a task whose file changed since its first cells here is another task.

        Sources are in every line's settings hash. Targets are not: a study's lines have one hash for all of them.
        """
        note = self.folder / TARGETS
        kept = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        now = {
            task.name: settings_hash(_definition(task)) for task in (self.tasks[name] for name in self.study.targets)
        }
        if changed := [name for name, found in now.items() if kept.get(name, found) != found]:
            raise SettingsError(
                f"{self.folder} holds cells of target {changed[0]}, whose task file said something else then; "
                "choose another --out"
            )
        return {**kept, **now}

    def run(self, job: Job, listener: Listener | None) -> list[Result]:
        """Learn a source stage, or train and score a cell."""
        what, key, argument = job.work
        contender = self.contenders[key]
        if what == "stage":
            return self._run_stage(job, contender, argument, listener)
        return self._run_cell(job, contender, argument, listener)

    def _run_stage(self, job: Job, contender: Contender, stage: Stage, listener: Listener | None) -> list[Result]:
        kind, *arguments = stage
        sources = self.sources(contender, job.place.seed, listener)
        return stage_lines(job, getattr(sources, str(kind))(*arguments), sources)

    def _run_cell(
        self, job: Job, contender: Contender, targets: Sequence[str], listener: Listener | None
    ) -> list[Result]:
        place, rows = job.place, tuple(self.data(name) for name in targets)
        sources = self.sources(contender, contender.study.source_seed(place.seed), listener)
        cell = Cell(contender.method, rows, place.shots, place.seed)
        trained = run_cell(cell, sources, listener)
        return [line for data in rows for line in self._scored(trained[data.task.name], data, sources, job)]

    def _scored(self, trained: Trained, data: TaskData, sources: Sources, job: Job) -> list[Result]:
        """Keep what was trained for a target; return its lines."""
        place, key = job.place._replace(target=data.task.name), job.settings_hash
        backbone, length = sources.backbone, sources.study.adapt.max_length
        prompt = self._kept(trained, place, key)
        evaluation = evaluate(backbone, prompt, data.test, task=data.task, max_length=length)
        rows = result_rows(backbone, prompt, data, evaluation, study=place.study, settings_hash=key)
        return [row.model_copy(update={"variant": place.variant}) for row in rows]

    def _kept(self, trained: Trained, cell: Place, key: str) -> Trained:
        if isinstance(trained, TunedModel):  # as large as the model, and the lines are what a study is for
            return trained
        place = self.place_of_prompt(cell)
        again = place.is_dir()
        if again:
            (place / PROMPT_SETTINGS).unlink(missing_ok=True)
        kept = trained.save(place, overwrite=again)
        write_text_atomically(place / PROMPT_SETTINGS, key)
        return kept

    def place_of_prompt(self, place: Place) -> Path:
        """Return where a cell's prompt is kept."""
        return prompt_folder(self.folder, place.target, place.method, place.shots, place.seed, place.variant)

    def sources(self, contender: Contender, seed: int, listener: Listener | None = None) -> Sources:
        """Return the source stages of a contender and a source seed."""
        data = tuple(self.data(name) for name in self.study.sources)
        folder = self.folder / "sources" / self._source_folder(contender.study, seed)
        return Sources(contender.study, self.backbone(contender.study), data, folder, seed, listener)

    def _source_folder(self, study: StudySpec, seed: int) -> str:
        """Variants that change a source stage have folders of their own."""
        facts = _source_facts(study)
        same = facts == _source_facts(self.study)
        return f"seed{seed}" if same else f"seed{seed}-{settings_hash(facts)[:8]}"

    def backbone(self, study: StudySpec) -> Backbone:
        """Return a study's backbone; one at a time is kept."""
        if self._backbone is None or self._backbone.name != study.backbone:
            self._backbone = Backbone.from_pretrained(study.backbone, **self.execution._asdict())
        return self._backbone

    def data(self, name: str) -> TaskData:
        """Return a task's rows, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = load_data(self.tasks[name], self.study.data, limits=self.study.limits)
        return self._loaded[name]

    def finish(self, results: Sequence[Result], folder: Path) -> None:
        """A report is made of the lines; there is no picture beside it."""


def _by_backbone(contenders: Sequence[Contender]) -> list[Contender]:
    """Put those of one backbone together, for one at a time is kept; who is first stays first."""
    keys = [each.study.backbone for each in contenders]
    return [each for key in dict.fromkeys(keys) for each, own in zip(contenders, keys, strict=True) if own == key]


def _definitions(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what tasks say."""
    return [_definition(load_task(name)) for name in names]


def _definition(task: TaskSpec) -> dict[str, Any]:
    """Return what a task says, without the places of its files: a study may be moved."""
    return task.model_dump(mode="json", exclude={"file", "files"})


def _source_facts(study: StudySpec) -> dict[str, Any]:
    identity = identity_of(study)
    return {name: identity[name] for name in ("backbone", "learn", "source_prompt", "limits")}


def _stage_facts(study: StudySpec, stage: Stage) -> dict[str, Any]:
    if stage[0] != "own":
        return {}
    return {"options": study.options_of(get_method(str(stage[1]))).model_dump(mode="json")}
