"""The source stages that a study's methods start from: learned once, kept on disk, and the result lines they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import require_backbone, versions
from bmtpt.artifacts.folder import CARD
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.methods.registry import Learned, Method, get_method
from bmtpt.results import Result, result_lines, settings_hash
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn, learn_own_source, start_settings
from bmtpt.studies.jobs import Place
from bmtpt.studies.spec import StudySpec
from bmtpt.tasks import TaskData
from bmtpt.train.checkpoint import load_checkpoint, save_checkpoint
from bmtpt.train.events import Listener, end_of
from bmtpt.train.loop import EVENTS
from bmtpt.types import DATA_ORDER

SOURCES = "sources"
"""What the lines of a source stage have as their target."""

POSTERIOR_METRICS = frozenset({"spread", "mean_nll", "particle_nll", "mean_gap"})
"""What the lines of a posterior hold at least."""

COST_METRICS = frozenset({"seconds"})
"""What the line of any other stage holds: its cost."""

SVGD_METRICS = ("kernel_rank", "repulsion_to_drive", "stein_discrepancy")
"""Diagnostics of the last step that have lines too, where they are defined."""


class Stage(NamedTuple):
    """A source stage of a study.

    Attributes:
        kind: A `prompt` of one source alone, the `start` that particles are placed around, a `posterior`, or a method's
            `own` stage.
        argument: The source's name, the number of particles, or the method's name.
    """

    kind: Literal["prompt", "start", "posterior", "own"]
    argument: str | int = ""

    def title(self, study: StudySpec) -> str:
        """Return the name that its lines give as their method."""
        if self.kind == "posterior":
            return "posterior" if self.argument == study.learn.particles else "multitask sources"
        return {"prompt": f"source prompt {self.argument}", "own": f"{self.argument} sources"}.get(self.kind, self.kind)

    def metrics(self, study: StudySpec) -> frozenset[str]:
        """Return what its lines hold; the start of the particles counts with their posterior."""
        if self.kind == "start":
            return frozenset()
        return POSTERIOR_METRICS if self.title(study) == "posterior" else COST_METRICS


def stages(method: Method, study: StudySpec, sources: Sequence[str]) -> list[Stage]:
    """Return the source stages that a method needs, each after those that it depends on.

    Args:
        sources: Names of the source tasks.
    """
    found: list[Stage] = []
    if method.needs == "source prompts":
        found = [Stage("prompt", name) for name in sources]
    elif method.needs != "nothing":
        start = [Stage("start")] if study.learn.particle_init == "prompt" else []
        found = [*start, Stage("posterior", 1 if method.needs == "multi-task prompt" else study.learn.particles)]
    return [*found, Stage("own", method.name)] if method.own_source else found


def source_settings(study: StudySpec, stage: Stage | None = None) -> dict[str, Any]:
    """Return the settings that decide a source stage (or, for None, any of them except methods' own)."""
    kept = study
    if stage and stage.kind == "start":
        kept = study.model_copy(update={"learn": start_settings(study.learn)})
    found = kept.model_dump(mode="json", include={"backbone", "learn", "source_prompt"})
    if stage and stage.kind == "own":
        found["options"] = study.options_of(get_method(str(stage.argument))).model_dump(mode="json")
    return found


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
        """Return the prompt that the particles start around, as a posterior of one particle.

        Variants that differ only in SVGD share it.
        """
        decisive = source_settings(self.study, Stage("start")), self.seed
        folder = self.folder.parent / f"start-{settings_hash({'start': decisive})[:8]}"
        return self._kept(folder, self.data, start_settings(self._seeded(self.study.learn)))

    def prompt(self, name: str) -> Posterior:
        """Return the prompt tuned on one source alone, as a posterior of one particle."""
        source = tuple(source for source in self.data if source.task.name == name)
        return self._kept(self.folder / f"only-{name}", source, self._seeded(self.study.source_prompt))

    def prompts(self) -> dict[str, Float[Tensor, "P D"]]:
        """Return the prompt tuned on each source alone."""
        return {name: self.prompt(name).mean.to(self.backbone.device) for name in self.names}

    def own(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the source stage that only this method has."""
        method, kept = get_method(name), self._own_folder(name) / f"{name}.safetensors"
        if not kept.is_file():
            found = learn_own_source(
                method,
                self.backbone,
                self.data,
                self.prompts(),
                self._seeded(self.study.learn),
                self.study.options_of(method),
                folder=kept.parent,
                listener=named(self.listener, name),
            )
            save_checkpoint(kept, found, {})
        return {key: tensor.to(self.backbone.device) for key, tensor in load_checkpoint(kept)[0].items()}

    def _own_folder(self, name: str) -> Path:
        options = self.study.options_of(get_method(name)).model_dump(mode="json")
        return self.folder / f"{name}-{settings_hash(options)[:8]}"

    def _seeded(self, settings: LearnSettings) -> LearnSettings:
        return settings.model_copy(update={"seed": self.seed})

    def _kept(
        self, folder: Path, data: tuple[TaskData, ...], settings: LearnSettings, start: Posterior | None = None
    ) -> Posterior:
        if not (folder / CARD).is_file():
            heard = named(self.listener, folder.name)
            return learn(self.backbone, data, settings, folder=folder, start=start, resume=True, listener=heard)
        found = Posterior.load(folder)
        require_backbone(found.card.backbone, self.backbone)
        return found

    def lines(self, stage: Stage, place: Place, metrics: frozenset[str]) -> list[Result]:
        """Learn a stage and return its result lines: its cost or, for a posterior, what is known of it.

        A method's own stage counts without those before it, and has no line if its folder has lost its events.
        """
        if stage.kind == "own":
            name = str(stage.argument)
            kept, own, sources = self.own(name), get_method(name).own_source, self.names
            end = end_of(self._own_folder(name) / EVENTS)
            if end is None or own is None:
                return []
            trained = own.trained_parameters(kept, len(sources))
            steps, seconds = int(end["step"]), float(end["seconds"])
            figures = {"seconds": seconds}
        else:
            posterior: Posterior = getattr(self, stage.kind)(*([stage.argument] if stage.kind != "start" else []))
            card, trained = posterior.card, posterior.particles.numel()
            sources, steps, seconds = card.sources, card.steps, card.seconds
            figures = measured(posterior) if metrics == POSTERIOR_METRICS else dict.fromkeys(metrics, seconds)
        return result_lines(
            figures,
            parameters=self.backbone.parameters,
            **place._asdict(),
            backbone=self.backbone.name,
            sources=sources,
            trained_parameters=trained,
            steps=steps,
            seconds=seconds,
            source_seed=self.seed,
            data=max((data.status for data in self.data if data.task.name in sources), key=DATA_ORDER.index),
            versions=versions(),
        )


def measured(posterior: Posterior) -> dict[str, float]:
    """Return what is known of a posterior: `spread` and `mean_rms` per number in embedding units, losses in nats."""
    facts = posterior.card.diagnostics
    own = [value for values in facts["particle_nll"].values() for value in values]
    return {
        "spread": float((posterior.particles - posterior.mean).square().mean().sqrt()),
        "mean_nll": sum(facts["mean_nll"].values()) / len(facts["mean_nll"]),
        "particle_nll": sum(own) / len(own),
        "mean_gap": facts["mean_gap"],
        "mean_rms": float(posterior.mean.square().mean().sqrt()),
        **{name: value for name in SVGD_METRICS if (value := facts.get("svgd", {}).get(name)) is not None},
    }


def named(listener: Listener | None, name: str) -> Listener | None:
    """Return a listener that says which stage an event belongs to."""
    if listener is None:
        return None
    return lambda event: listener({"stage": name, **event})
