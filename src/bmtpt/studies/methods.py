"""The compared methods, as the candidates each one lets compete on a target."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.api import fit_targets, learn, posterior_candidates
from bmtpt.artifacts import CARD, Posterior, Prompt
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.model import Backbone
from bmtpt.files import write_text_atomically
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.methods.spot import source_mean_candidate, spot_candidates
from bmtpt.methods.target import Candidate, CandidateBuilder, TargetRows
from bmtpt.results import settings_hash
from bmtpt.settings import AdaptSettings, LearnSettings, identity_of
from bmtpt.studies.spec import MethodName, StudySpec
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener

IDENTITY = "identity.txt"
"""File of a source stage's folder that says what decided its content."""


Stage = tuple[str, int | str]
"""A source stage: the function of `Sources` that learns it, and what that is given."""


def stages(method: str, study: StudySpec, sources: Sequence[str]) -> list[Stage]:
    """Return the source stages that a method needs; they are learned first, each by one process.

    Args:
        sources: Names of the source tasks.
    """
    if method in ("bmtpt", "bmtpt_no_prior"):
        return [("posterior", study.learn.particles)]
    if method == "multitask":
        return [("posterior", 1)]
    return [("prompt", name) for name in sources] if method in ("spot", "source_mean") else []


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

    def posterior(self, particles: int) -> Posterior:
        """Return the posterior over all sources; one particle is multi-task prompt tuning."""
        settings = self.study.learn.model_copy(update={"particles": particles})
        return self._learned(f"m{particles}", self.data, settings)

    def prompt(self, name: str) -> Posterior:
        """Return the prompt tuned on one source alone, as the posterior of one particle that it is."""
        (source,) = (source for source in self.data if source.task.name == name)
        return self._learned(f"only-{name}", (source,), self.study.source_prompt)

    def prompts(self) -> dict[str, Float[Tensor, "P D"]]:
        """Return the prompt tuned on each source alone."""
        names = [source.task.name for source in self.data]
        return {name: self.prompt(name).mean.to(self.backbone.device) for name in names}

    def _learned(self, name: str, data: tuple[TaskData, ...], settings: LearnSettings) -> Posterior:
        folder = self.folder / name
        settings = settings.model_copy(update={"seed": self.seed})
        _claim(folder, self._identity(data, settings))
        if (folder / CARD).is_file():
            return Posterior.load(folder)
        return learn(self.backbone, data, settings, folder=folder, resume=True, listener=_named(self.listener, name))

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
    """One run of the target stage: a method on a target with some shots and a seed."""

    method: MethodName
    target: TaskData
    shots: int | None
    seed: int


def run_cell(cell: Cell, sources: Sources, listener: Listener | None) -> Prompt:
    """Train one cell's prompt."""
    study = sources.study
    settings = study.adapt.model_copy(update={"shots": cell.shots, "seed": cell.seed, "ensemble": False})
    if cell.method in ("bmtpt_no_prior", "multitask"):
        settings = settings.model_copy(update={"prior": "none"})
    posterior = None
    if cell.method in ("multitask", "bmtpt", "bmtpt_no_prior"):
        posterior = sources.posterior(1 if cell.method == "multitask" else study.learn.particles)
    particles = posterior.particles.to(sources.backbone.device) if posterior else None
    prompts = fit_targets(
        sources.backbone,
        [cell.target],
        _candidates(cell, sources, particles, settings),
        settings,
        method=cell.method,
        particles=particles,
        sources=() if cell.method == "pt" else [source.task.name for source in sources.data],
        posterior=posterior.weights_sha256 if posterior else None,
        listener=_named(listener, f"{cell.target.task.name} {cell.method} k={cell.shots} seed={cell.seed}"),
    )
    return prompts[cell.target.task.name]


def _candidates(
    cell: Cell, sources: Sources, particles: Float[Tensor, "M P D"] | None, settings: AdaptSettings
) -> CandidateBuilder:
    """Return the starts and priors of a cell's method."""
    study = sources.study
    if particles is not None:
        return posterior_candidates(particles, settings)
    if cell.method == "pt":
        length = study.learn.prompt_length
        return lambda engine, rows: plain_candidates(sources.backbone, length, cell.seed, study.candidates)
    prompts = sources.prompts()
    if cell.method == "source_mean":
        return lambda engine, rows: [source_mean_candidate(prompts)]

    def spot(engine: Engine, rows: Mapping[str, TargetRows]) -> list[Candidate]:
        (target,) = rows.values()
        losses = engine.losses(torch.stack(list(prompts.values())), target.select.batch).mean(dim=1)
        return spot_candidates(prompts, dict(zip(prompts, losses.tolist(), strict=True)), study.candidates)

    return spot


def _named(listener: Listener | None, name: str) -> Listener | None:
    """Tell the listener which stage an event belongs to."""
    if listener is None:
        return None
    return lambda event: listener({"stage": name, **event})
