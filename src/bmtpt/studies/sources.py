"""The source stages that a study's methods start from, and one cell of the study."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.files import write_files_atomically, write_text_atomically
from bmtpt.artifacts.folder import CARD
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.methods.registry import Learned, Method, get_method
from bmtpt.results import settings_hash
from bmtpt.settings import LearnSettings, identity_of
from bmtpt.stages.baselines import Trained, fit_method, learn_own_source
from bmtpt.stages.source import learn, start_settings
from bmtpt.studies.spec import StudySpec
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener, end_of
from bmtpt.train.loop import EVENTS

START_STAGE = ("start",)
"""The prompt that particles start around: variants that differ only in SVGD share it."""

IDENTITY = "identity.txt"
"""File of a source stage's folder that says what decided its content."""


Stage = tuple[int | str, ...]
"""A source stage: the function of `Sources` that learns it, and its arguments."""


def stages(method: Method, study: StudySpec, sources: Sequence[str]) -> list[Stage]:
    """Return the source stages that a method needs, each after those that it depends on.

    Args:
        sources: Names of the source tasks.
    """
    found: list[Stage] = []
    if method.needs == "source prompts":
        found = [("prompt", name) for name in sources]
    elif method.needs != "nothing":
        start: list[Stage] = [START_STAGE] if study.learn.particle_init == "prompt" else []
        found = [*start, ("posterior", 1 if method.needs == "multi-task prompt" else study.learn.particles)]
    return [*found, ("own", method.name)] if method.own_source else found


@dataclass(frozen=True)
class Sources:
    """The source stages of one seed, each learned when it is first asked for and kept on disk.

    Attributes:
        folder: Where the artifacts are.
        seed: Of the source stages.
    """

    study: StudySpec
    backbone: Backbone
    data: tuple[TaskData, ...]
    folder: Path
    seed: int
    listener: Listener | None

    @property
    def names(self) -> tuple[str, ...]:
        """The source tasks."""
        return tuple(source.task.name for source in self.data)

    def learned(self, method: Method) -> Learned:
        """Return all that a method starts from."""
        particles = {"multi-task prompt": 1, "posterior": self.study.learn.particles}.get(method.needs)
        return Learned(
            self.names,
            self.posterior(particles) if particles else None,
            self.prompts() if method.needs == "source prompts" else {},
            self.own(method.name) if method.own_source else {},
        )

    def posterior(self, particles: int) -> Posterior:
        """Return the posterior over all sources; one particle is multi-task prompt tuning."""
        settings = self._seeded(self.study.learn.model_copy(update={"particles": particles}))
        start = self.start() if settings.particle_init == "prompt" else None
        return self._kept(self.folder / f"m{particles}", self.data, settings, start)

    def start(self) -> Posterior:
        """Return the prompt that the particles start around, as a posterior of one particle."""
        settings = start_settings(self._seeded(self.study.learn))
        folder = self.folder.parent / f"start-{self._identity(self.data, settings)[:8]}"
        return self._kept(folder, self.data, settings)

    def prompt(self, name: str) -> Posterior:
        """Return the prompt tuned on one source alone, as a posterior of one particle."""
        (source,) = (source for source in self.data if source.task.name == name)
        return self._kept(self.folder / f"only-{name}", (source,), self._seeded(self.study.source_prompt))

    def prompts(self) -> dict[str, Float[Tensor, "P D"]]:
        """Return the prompt tuned on each source alone."""
        return {name: self.prompt(name).mean.to(self.backbone.device) for name in self.names}

    def own(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the source stage that only this method has."""
        method, folder = get_method(name), self.own_folder(name)
        settings, options = self._seeded(self.study.learn), self.study.options_of(method)
        facts = {
            "stage": self._identity(self.data, settings.model_copy(update={"particles": 1})),
            "prompts": self._identity(self.data, self.study.source_prompt),
            "options": options.model_dump(mode="json"),
        }
        _claim(folder, settings_hash(facts))
        kept = folder / f"{name}.safetensors"
        if not kept.is_file():
            found = learn_own_source(
                method,
                self.backbone,
                self.data,
                self.prompts(),
                settings,
                options,
                folder=folder,
                listener=named(self.listener, name),
            )
            tensors = {key: tensor.cpu().contiguous() for key, tensor in found.items()}
            write_files_atomically(folder, {kept.name: to_safetensors(tensors)})
        return load_file(kept, device=str(self.backbone.device))

    def end_of_own(self, name: str) -> dict[str, Any] | None:
        """Return how a method's own stage ended (`step`, `seconds`), or None if its events are not there."""
        return end_of(self.own_folder(name) / EVENTS)

    def own_folder(self, name: str) -> Path:
        """Return where a method's own stage is kept."""
        options = self.study.options_of(get_method(name)).model_dump(mode="json")
        return self.folder / f"{name}-{settings_hash(options)[:8]}"

    def _seeded(self, settings: LearnSettings) -> LearnSettings:
        return settings.model_copy(update={"seed": self.seed})

    def _kept(
        self, folder: Path, data: tuple[TaskData, ...], settings: LearnSettings, start: Posterior | None = None
    ) -> Posterior:
        _claim(folder, self._identity(data, settings))
        if (folder / CARD).is_file():
            return Posterior.load(folder)
        heard = named(self.listener, folder.name)
        return learn(self.backbone, data, settings, folder=folder, start=start, resume=True, listener=heard)

    def _identity(self, data: tuple[TaskData, ...], settings: LearnSettings) -> str:
        """Name everything that decides a source stage's result, but not the places of files: a study may be moved."""
        facts = {
            "settings": identity_of(settings),
            "backbone": self.backbone.fingerprint,
            "tasks": [source.task.model_dump(mode="json", exclude={"file", "files"}) for source in data],
            "rows": [[len(source.train), len(source.select), source.status] for source in data],
            "limits": asdict(self.study.limits),
        }
        return settings_hash(facts)


def _claim(folder: Path, identity: str) -> None:
    """Empty a source stage's folder if what is in it was made with other settings, data or model."""
    note = folder / IDENTITY
    if folder.is_dir() and (not note.is_file() or note.read_text(encoding="utf-8") != identity):
        shutil.rmtree(folder)
    if not note.is_file():
        write_text_atomically(note, identity)


@dataclass(frozen=True)
class Cell:
    """One run of the target stage: a method with some shots and a seed, on one target or on several together."""

    method: str
    targets: tuple[TaskData, ...]
    shots: int | None
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        targets = "+".join(target.task.name for target in self.targets)
        return f"{targets} {self.method} k={self.shots} seed={self.seed}"


def run_cell(cell: Cell, sources: Sources, listener: Listener | None) -> Mapping[str, Trained]:
    """Train one cell; return what predicts each target."""
    study, method = sources.study, get_method(cell.method)
    return fit_method(
        method,
        sources.backbone,
        cell.targets,
        study.adapt.model_copy(update={"shots": cell.shots, "seed": cell.seed, "ensemble": False}),
        study.options_of(method),
        learned=sources.learned(method),
        budget=study.candidates,
        prompt_length=study.learn.prompt_length,
        listener=named(listener, cell.name),
    )


def named(listener: Listener | None, name: str) -> Listener | None:
    """Tell the listener which stage an event belongs to."""
    if listener is None:
        return None
    return lambda event: listener({"stage": name, **event})
