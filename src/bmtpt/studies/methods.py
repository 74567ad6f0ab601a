"""The compared methods, as the candidates each one lets compete on a target."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.files import write_files_atomically, write_text_atomically
from bmtpt.artifacts.folder import CARD
from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.methods.mpt import mpt_candidate
from bmtpt.methods.perturbation import perturbed_candidates
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.methods.source_ensemble import ensemble_candidates
from bmtpt.methods.source_mean import source_mean_candidate
from bmtpt.methods.spot import spot_candidates
from bmtpt.methods.target import Candidate, CandidateBuilder, TargetRows
from bmtpt.posterior.prompts import Decomposed
from bmtpt.results import settings_hash
from bmtpt.settings import AdaptSettings, LearnSettings, WeightMethod, identity_of
from bmtpt.stages.baselines import fit_attempt, learn_mpt
from bmtpt.stages.source import learn, start_settings
from bmtpt.stages.target import fit_targets, posterior_candidates
from bmtpt.stages.weights import TunedModel, fit_weights
from bmtpt.studies.spec import SOURCE_PROMPT_METHODS, MethodName, StudySpec
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener, end_of
from bmtpt.train.loop import EVENTS

MPT = "mpt.safetensors"
MPT_STAGE = ("mpt",)
"""Rests on the prompts of the single sources, which are its teachers."""
START_STAGE = ("start",)
"""The prompt that particles start around: variants that differ in SVGD only share it."""

IDENTITY = "identity.txt"
"""File of a source stage's folder that says what decided its content."""


Stage = tuple[int | str, ...]
"""A source stage: the function of `Sources` that learns it, and what that is given."""


def stages(method: str, study: StudySpec, sources: Sequence[str]) -> list[Stage]:
    """Return the source stages that a method needs, in an order in which each comes behind what it rests on.

    They are learned first, each by one process.

    Args:
        sources: Names of the source tasks.
    """
    if method in ("bmtpt", "bmtpt_no_prior", "multitask"):
        start: list[Stage] = [START_STAGE] if study.learn.particle_init == "prompt" else []
        return [*start, ("posterior", 1 if method == "multitask" else study.learn.particles)]
    alone: list[Stage] = [("prompt", name) for name in sources] if method in SOURCE_PROMPT_METHODS else []
    return [*alone, MPT_STAGE] if method == "mpt" else alone


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
        settings = self._seeded(self.study.learn.model_copy(update={"particles": particles}))
        start = self.start() if settings.particle_init == "prompt" else None
        return self._learned(self.folder / f"m{particles}", self.data, settings, start)

    def start(self) -> Posterior:
        """Return the prompt that the particles start around, as the posterior of one particle that it is."""
        settings = start_settings(self._seeded(self.study.learn))
        folder = self.folder.parent / f"start-{self._identity(self.data, settings)[:8]}"
        return self._learned(folder, self.data, settings)

    def prompt(self, name: str) -> Posterior:
        """Return the prompt tuned on one source alone, likewise."""
        (source,) = (source for source in self.data if source.task.name == name)
        return self._learned(self.folder / f"only-{name}", (source,), self._seeded(self.study.source_prompt))

    def prompts(self) -> dict[str, Float[Tensor, "P D"]]:
        """Return the prompt tuned on each source alone."""
        names = [source.task.name for source in self.data]
        return {name: self.prompt(name).mean.to(self.backbone.device) for name in names}

    def mpt(self) -> Decomposed:
        """Return MPT's shared prompt and mean factors over all sources."""
        settings = self._seeded(self.study.learn.model_copy(update={"particles": 1}))
        teachers = self._identity(self.data, self.study.source_prompt)
        folder = self._mpt_folder
        facts = {"student": self._identity(self.data, settings), "teachers": teachers, **identity_of(self.study.mpt)}
        _claim(folder, settings_hash(facts))
        if not (folder / MPT).is_file():
            found = learn_mpt(
                self.backbone,
                self.data,
                self.prompts(),
                settings,
                self.study.mpt,
                folder=folder,
                listener=_named(self.listener, "mpt"),
            )
            tensors = {name: tensor.cpu().contiguous() for name, tensor in found._asdict().items()}
            write_files_atomically(folder, {MPT: to_safetensors(tensors)})
        return Decomposed(**load_file(folder / MPT, device=str(self.backbone.device)))

    def mpt_end(self) -> dict[str, Any] | None:
        """Return how MPT's stage ended (`step`, `seconds`), or None if its events are not there."""
        return end_of(self._mpt_folder / EVENTS)

    @property
    def _mpt_folder(self) -> Path:
        return self.folder / f"mpt-{settings_hash(identity_of(self.study.mpt))[:8]}"

    def _seeded(self, settings: LearnSettings) -> LearnSettings:
        return settings.model_copy(update={"seed": self.seed})

    def _learned(
        self, folder: Path, data: tuple[TaskData, ...], settings: LearnSettings, start: Posterior | None = None
    ) -> Posterior:
        _claim(folder, self._identity(data, settings))
        if (folder / CARD).is_file():
            return Posterior.load(folder)
        heard = _named(self.listener, folder.name)
        return learn(self.backbone, data, settings, folder=folder, start=start, resume=True, listener=heard)

    def _identity(self, data: tuple[TaskData, ...], settings: LearnSettings) -> str:
        """Name everything that decides a source stage's result, but not the places of files: a study may be moved."""
        facts = {
            "settings": identity_of(settings),
            "backbone": self.backbone.fingerprint,
            "tasks": [source.task.model_dump(mode="json", exclude={"file", "files"}) for source in data],
            "rows": [[len(source.train), len(source.select), source.status] for source in data],
            "limits": asdict(self.study.limits),
            **self.study.stage_precision(),
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

    method: MethodName
    targets: tuple[TaskData, ...]
    shots: int | None
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        targets = "+".join(target.task.name for target in self.targets)
        return f"{targets} {self.method} k={self.shots} seed={self.seed}"


Trained = Prompt | PromptMixture | TunedModel


def run_cell(cell: Cell, sources: Sources, listener: Listener | None) -> Mapping[str, Trained]:
    """Train one cell; return what predicts each target."""
    study = sources.study
    ensemble = cell.method == "source_ensemble"
    settings = study.adapt.model_copy(update={"shots": cell.shots, "seed": cell.seed, "ensemble": ensemble})
    heard = _named(listener, cell.name)
    if cell.method in get_args(WeightMethod):
        (target,), method = cell.targets, cast(WeightMethod, cell.method)
        tuned = fit_weights(sources.backbone, target, settings, study.weights, method=method, listener=heard)
        return {target.task.name: tuned}
    if cell.method in ("bmtpt_no_prior", "multitask"):
        settings = settings.model_copy(update={"prior": "none"})
    if cell.method == "attempt":
        return fit_attempt(
            sources.backbone,
            cell.targets,
            sources.prompts(),
            settings,
            study.attempt,
            candidates=study.candidates,
            listener=heard,
        )
    posterior = None
    if cell.method in ("multitask", "bmtpt", "bmtpt_no_prior"):
        posterior = sources.posterior(1 if cell.method == "multitask" else study.learn.particles)
    particles = posterior.particles.to(sources.backbone.device) if posterior else None
    return fit_targets(
        sources.backbone,
        cell.targets,
        _candidates(cell, sources, particles, settings),
        settings,
        method=cell.method,
        particles=particles,
        sources=() if cell.method in ("pt", "ptp") else [source.task.name for source in sources.data],
        posterior=posterior.weights_sha256 if posterior else None,
        listener=heard,
    )


def _candidates(
    cell: Cell, sources: Sources, particles: Float[Tensor, "M P D"] | None, settings: AdaptSettings
) -> CandidateBuilder:
    """Return the starts and priors of a cell's method."""
    if particles is not None:
        return posterior_candidates(particles, settings)
    if cell.method == "spot":
        return _spot(sources)
    starts = _starts(cell, sources)
    return lambda engine, rows: starts


def _starts(cell: Cell, sources: Sources) -> list[Candidate]:
    """Return the starts of a method that chooses them without the target's rows."""
    study = sources.study
    if cell.method in ("pt", "ptp"):
        plain = plain_candidates(sources.backbone, study.learn.prompt_length, cell.seed, study.candidates)
        return plain if cell.method == "pt" else perturbed_candidates(plain, study.noise_std)
    if cell.method == "mpt":
        return [mpt_candidate(sources.mpt())]
    prompts = sources.prompts()
    return [source_mean_candidate(prompts)] if cell.method == "source_mean" else ensemble_candidates(prompts)


def _spot(sources: Sources) -> CandidateBuilder:
    prompts, count = sources.prompts(), sources.study.candidates

    def spot(engine: Engine, rows: Mapping[str, TargetRows]) -> list[Candidate]:
        (target,) = rows.values()
        losses = engine.losses(torch.stack(list(prompts.values())), target.select.batch).mean(dim=1)
        return spot_candidates(prompts, dict(zip(prompts, losses.tolist(), strict=True)), count)

    return spot


def _named(listener: Listener | None, name: str) -> Listener | None:
    """Tell the listener which stage an event belongs to."""
    if listener is None:
        return None
    return lambda event: listener({"stage": name, **event})
