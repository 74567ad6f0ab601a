"""A study's plan and its work: methods × variants × targets × shots × seeds, and the source stages that they share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bmtpt.backbone import Backbone
from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.backbone.model.load import load_config
from bmtpt.errors import SettingsError
from bmtpt.inference.score import metric_names
from bmtpt.methods.classifier import Classifier
from bmtpt.methods.registry import Learned, get_method
from bmtpt.methods.weights import TunedModel
from bmtpt.results import Result, settings_hash
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.target import fit_method, read_again, settled
from bmtpt.stages.trained import Trained
from bmtpt.studies.identity import GROWING, claim
from bmtpt.studies.jobs import Job, Place
from bmtpt.studies.kept import READING, kept, trains_alike
from bmtpt.studies.sources import SOURCES, Sources, named, source_settings, stages
from bmtpt.studies.spec import Contender, StudySpec
from bmtpt.studies.variants import SOURCE_STAGE
from bmtpt.tasks import TaskData, TaskSpec, load_data, load_task
from bmtpt.train.events import Listener


def prompt_folder(folder: Path, target: str, method: str, shots: int | None, seed: int, variant: str = "") -> Path:
    """Return where a cell's prompt is kept."""
    point = re.sub(r"[^\w=.,-]", "_", f"-{variant}") if variant else ""
    return folder / "prompts" / f"{target}-{method}{point}-k{shots or 'all'}-seed{seed}"


class Grid:
    """Plans a study and does its jobs.

    Attributes:
        study: With its variants.
        folder: Holds the source stages and the prompts.
        execution: How the backbone runs.
    """

    def __init__(
        self, study: StudySpec, folder: Path, execution: Execution = AUTOMATIC, like: Grid | None = None
    ) -> None:
        """Plan a study; take over the model and the rows that a grid like it has loaded."""
        self.study = study
        self.folder = folder
        self.execution = execution
        self.contenders = {contender.key: contender for contender in study.contenders()}
        self._stages: dict[str, Job] = {}
        same_model = like is not None and like.execution == execution
        same_rows = like is not None and (like.study.data, like.study.limits) == (study.data, study.limits)
        self._backbone: Backbone | None = like._backbone if like and same_model else None
        self._loaded: dict[str, TaskData] = like._loaded if like and same_rows else {}

    # The plan

    def jobs(self) -> list[Job]:
        """Return source stages and cells, seeds outermost: a study that is cut short has few seeds of everything."""
        found: dict[Job, None] = {}
        backbones = list(dict.fromkeys(each.study.backbone for each in self.contenders.values()))
        by_backbone = sorted(self.contenders.values(), key=lambda each: backbones.index(each.study.backbone))
        for seed in self.study.seeds:
            for shots in self.study.shots:
                for target in self.study.targets:
                    words = bool(self.tasks[target].fixed_words)
                    for contender in by_backbone:
                        if words or not get_method(contender.method).label_words_only:
                            found |= dict.fromkeys(self._cell_jobs(contender, target, shots, seed))
        return list(found)

    def _cell_jobs(self, contender: Contender, target: str, shots: int | None, seed: int) -> Iterator[Job]:
        """Yield what a cell needs and then the cell, which is the same for all targets that are trained together."""
        names = [self.tasks[name].name for name in self.study.sources]
        source_seed = self.study.source_seed(seed)
        needs: list[Job] = []
        for stage in stages(get_method(contender.method), contender.study, names):
            depends_on = () if stage.kind == "prompt" else tuple(needs)
            # Contenders with the same source settings share a stage.
            key = f"{source_seed}{stage}{settings_hash(source_settings(contender.study, stage))}"
            if key not in self._stages:
                decisive = (*SOURCE_STAGE, "options") if stage.kind == "own" else SOURCE_STAGE
                title, variant = stage.title(contender.study), contender.variant.name_of(decisive)
                place = Place(self.study.name, title, variant, SOURCES, None, source_seed)
                todo = ("stage", contender.key, stage)
                metrics = stage.metrics(contender.study)
                self._stages[key] = Job(place, metrics, source_seed, todo, depends_on, on_demand=True)
            needs.append(self._stages[key])
        yield from needs
        targets = self.study.targets if contender.study.together else (target,)
        lines = {
            Place(self.study.name, contender.method, variant, task.name, shots, seed): frozenset(metric_names(task))
            for task in (self.tasks[name] for name in targets)
            for variant in (contender.variant.name, *(contender.reread if task.fixed_words else ()))
        }
        (place, metrics), *others = lines.items()
        work = ("cell", contender.key, targets)
        yield Job(place, metrics, source_seed if needs else None, work, tuple(needs), others=tuple(others))

    @cached_property
    def tasks(self) -> dict[str, TaskSpec]:
        """Tasks by their names in the study."""
        return {name: load_task(name) for name in (*self.study.sources, *self.study.targets)}

    # The checks before the work

    def require_feasible(self) -> None:
        """Refuse methods that cannot run here, before the source stages, which may take hours.

        Raises:
            BackboneError: The method does not run on this kind of model, or the model's configuration cannot be read.
            SettingsError: The method needs a package that is not installed.
        """
        configs: dict[str, Any] = {}
        for name, backbone in dict.fromkeys((each.method, each.study.backbone) for each in self.contenders.values()):
            method = get_method(name)
            if method.package and find_spec(method.package) is None:
                raise SettingsError(
                    f"{method.display_name} needs the {method.package} package; "
                    f"run: pip install 'bmtpt[{method.extra or method.package}]', or leave {name} out"
                )
            if method.backbones == "any" or backbone == "offline":  # the offline backbone is a T5
                continue
            configs[backbone] = configs.get(backbone) or load_config(backbone)
            method.require_runs_on(backbone, configs[backbone])

    def claim_folder(self) -> None:
        """Load all rows, and refuse a folder that was begun with another study. Raises as `identity.claim`."""
        claim(self.folder, self.study, {name: self.data(name) for name in self.tasks})

    # The work

    def run(self, job: Job, listener: Listener | None) -> list[Result]:
        """Learn a source stage, or train a cell and keep its prompts; return the lines."""
        what, key, argument = job.work
        contender, place = self.contenders[key], job.place
        sources = self.sources(contender, job.source_seed, listener)
        if what == "stage":
            return sources.lines(argument, place, job.metrics)
        study, method, data = contender.study, get_method(contender.method), [self.data(name) for name in argument]
        names = "+".join(each.task.name for each in data)
        settings = study.adapt.model_copy(update={"shots": place.shots, "seed": place.seed, "ensemble": False})
        learned = sources.learned(method)
        trained = self._kept(contender, place, data, settings, learned) or fit_method(
            method,
            sources.backbone,
            data,
            settings,
            study.options_of(method),
            learned=learned,
            budget=study.candidates,
            prompt_length=study.learn.prompt_length,
            listener=named(listener, f"{names} {method.name} k={place.shots} seed={place.seed}"),
        )
        lines = []
        for target in data:
            found = trained[target.task.name]
            ways = {place.variant: None, **(contender.reread if target.task.fixed_words else {})}
            for variant, changes in ways.items():
                if place._replace(target=target.task.name, variant=variant) not in job.written:
                    again = found if changes is None else read_again(sources.backbone, found, target, changes)
                    lines += self._scored(job, contender, target, again, variant)
        return lines

    def _kept(
        self, contender: Contender, place: Place, data: Sequence[TaskData], settings: AdaptSettings, learned: Learned
    ) -> dict[str, Any]:
        """Return what an earlier run has trained for all targets of a cell, or nothing."""
        method, found = get_method(contender.method), {}
        if method.tunes_weights or method.classifier:
            return {}
        own = settled(method, data, settings, contender.study.options_of(method))
        posterior = learned.posterior.weights_sha256 if learned.posterior else None

        def there(target: TaskData, variant: str, apart_from: AbstractSet[str] = frozenset()) -> Any:
            folder = prompt_folder(self.folder, target.task.name, place.method, place.shots, place.seed, variant)
            return kept(folder, method, own, posterior, apart_from)

        def read_otherwise(target: TaskData) -> Any:
            others = (there(target, variant, READING) for variant in self._read_otherwise(contender))
            other = next((each for each in others if each is not None), None)
            changes = own.model_dump(mode="json", include=READING)
            return other and read_again(self.backbone(contender.study.backbone), other, target, changes)

        for target in data:
            trained = there(target, place.variant)
            if trained is None and trains_alike(own):
                trained = read_otherwise(target)
            if trained is None:
                return {}
            found[target.task.name] = trained
        return found

    def _read_otherwise(self, contender: Contender) -> list[str]:
        """Return the variants of a contender's method that differ from it only in how prompts are read."""

        def training(each: Contender) -> dict[str, Any]:
            found: dict[str, Any] = each.study.model_dump(mode="json", exclude={"adapt": READING})
            return found

        own = training(contender)
        others = (each for each in self.contenders.values() if each.method == contender.method and each != contender)
        return [each.variant.name for each in others if training(each) == own]

    def _scored(self, job: Job, contender: Contender, target: TaskData, found: Trained, variant: str) -> list[Result]:
        """Keep what a cell trained for a target, as one of its variants, and return its lines."""
        study, place, backbone = contender.study, job.place, self.backbone(contender.study.backbone)
        if not isinstance(found, TunedModel | Classifier):  # tuned weights may be as large as the model
            name = target.task.name
            folder = prompt_folder(self.folder, name, place.method, place.shots, place.seed, variant)
            found = found.save(folder, overwrite=True)
        score = evaluate(backbone, found, target.test, task=target.task, max_length=study.adapt.max_length)
        return result_rows(
            backbone,
            found,
            target,
            score,
            study=place.study,
            variant=variant,
            settings_hash=settings_hash(study.model_dump(mode="json", exclude={*GROWING, "variants"})),
            source_seed=job.source_seed,
        )

    def sources(self, contender: Contender, seed: int | None, listener: Listener | None = None) -> Sources:
        """Return the source stages of a contender and a source seed, which is None for a contender that needs none."""
        own, same = (settings_hash(source_settings(study)) for study in (contender.study, self.study))
        place = f"seed{seed}" if own == same else f"seed{seed}-{own[:8]}"
        data = tuple(self.data(name) for name in self.study.sources)
        folder = self.folder / "sources" / place
        return Sources(contender.study, self.backbone(contender.study.backbone), data, folder, seed or 0, listener)

    def backbone(self, name: str) -> Backbone:
        """Return a backbone; one at a time is kept."""
        if self._backbone is None or self._backbone.name != name:
            self._backbone = Backbone.from_pretrained(name, **self.execution._asdict())
        return self._backbone

    def data(self, name: str) -> TaskData:
        """Return a task's rows, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = load_data(self.tasks[name], self.study.data, limits=self.study.limits)
        return self._loaded[name]
