"""The target stage of any method, from rows to trained tensors and their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import PromptCard, backbone_card, now, require_backbone, versions
from bmtpt.artifacts.folder import output_folder, require_free
from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone import Backbone
from bmtpt.methods.map_target import posterior_candidates
from bmtpt.methods.target import CandidateBuilder, TargetPrompts, TargetRows, TargetStage
from bmtpt.settings import AdaptSettings
from bmtpt.stages.rows import distinct, row_digests, target_rows
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.loop import Outcome
from bmtpt.train.run import Run

Stage = TypeVar("Stage", bound=TargetStage)


@dataclass(frozen=True)
class Trained(Generic[Stage]):
    """A target stage that has run.

    Attributes:
        stage: What was trained.
        tensors: Its trained tensors in the order of its groups, each candidate at its best validation.
        winners: The chosen candidates: one, or one for each start of an ensemble.
        cards: Where the result comes from, by target.
    """

    stage: Stage
    tensors: list[Tensor]
    winners: list[int]
    cards: dict[str, PromptCard]


def all_target_rows(backbone: Backbone, targets: Sequence[TaskData], settings: AdaptSettings) -> dict[str, TargetRows]:
    """Return the tokenised rows of targets by name. Errors as `target_rows`.

    Raises:
        SettingsError: No target, or one named twice.
    """
    distinct([target.task.name for target in targets], "target")
    return {target.task.name: target_rows(backbone, target, settings) for target in targets}


def train_targets(
    backbone: Backbone,
    targets: Sequence[TaskData],
    stage: Stage,
    run: Run,
    *,
    method: str,
    sources: Sequence[str] = (),
    posterior: str | None = None,
) -> Trained[Stage]:
    """Train a target stage in the one loop.

    Args:
        stage: What is trained, on the rows of these targets.
        run: Where it lives.
        method, sources, posterior: For the cards.
    """
    identity = {
        "posterior": posterior,
        "method": method,
        "rows": row_digests({name: each.train for name, each in stage.targets.items()}),
        "validation": row_digests({name: each.select for name, each in stage.targets.items()}),
    }
    outcome = run.train(stage, stage.settings, identity, stage.settings.patience)
    winners = _winners(stage, outcome)
    facts: dict[str, Any] = {
        "backbone": backbone_card(backbone),
        "sources": tuple(sources),
        "settings": stage.settings.model_dump(mode="json"),
        "steps": outcome.state.step,
        "seconds": outcome.state.seconds,
        "versions": versions(),
        "created": now(),
        "method": method,
        "posterior": posterior,
        "trained_parameters": stage.trained_parameters() * len(winners),
    }
    cards = {
        target.task.name: PromptCard(
            **facts,
            task=target.task.name,
            task_definition=target.task.model_dump(mode="json"),
            selection=_selection(stage, outcome, stage.targets[target.task.name]),
        )
        for target in targets
    }
    return Trained(stage, [tensor.detach() for tensor in outcome.tensors], winners, cards)


def _winners(stage: TargetStage, outcome: Outcome) -> list[int]:
    """Return the best candidate, or the best of each start for an ensemble; the first where nothing is selected."""
    if not stage.settings.ensemble:
        return [outcome.winner]
    by_start: dict[str, list[int]] = {}
    for r, candidate in enumerate(stage.candidates):
        by_start.setdefault(candidate.start_name, []).append(r)
    best = outcome.state.best
    return [max(group, key=lambda r: best[r]) if best else group[0] for group in by_start.values()]


def _selection(stage: TargetStage, outcome: Outcome, rows: TargetRows) -> dict[str, Any]:
    """Return how the model was chosen: every candidate's best validation, which includes σ's curve."""
    state, R = outcome.state, len(stage.candidates)
    best, steps = (state.best, state.best_step) if state.best else ([()] * R, [state.step] * R)
    curve = [
        {**candidate.describe(), "best": list(key), "step": step}
        for candidate, key, step in zip(stage.candidates, best, steps, strict=True)
    ]
    return {
        "winners": [curve[r] for r in _winners(stage, outcome)],
        "candidates": curve,
        "train_rows": len(rows.train),
        "validation_rows": len(rows.select),
        "texts_cut": rows.train.cut + rows.select.cut,
    }


def adapt(
    posterior: Posterior,
    target: TaskData,
    settings: AdaptSettings | None = None,
    *,
    backbone: Backbone | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Prompt:
    """Adapt a posterior to one target by MAP (docs/method.md, section 2).

    Args:
        posterior: The prior's source.
        target: Rows of the target task.
        settings: Of the target stage.
        backbone: The frozen model, or None to load the one named in the posterior's card.
        folder, resume, overwrite, listener: As for `learn`.

    Raises:
        BackboneError: The posterior belongs to another model.
        DataError: Too few rows for the shots asked for.
        TrainingError, ArtifactError: As for `learn`.
    """
    settings = settings or AdaptSettings()
    backbone = backbone or Backbone.from_pretrained(posterior.card.backbone.name)
    return adapt_together(
        posterior,
        [target],
        settings,
        backbone=backbone,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        listener=listener,
    )[target.task.name]


def adapt_together(
    posterior: Posterior,
    targets: Sequence[TaskData],
    settings: AdaptSettings | None = None,
    *,
    backbone: Backbone,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> dict[str, Prompt]:
    """Adapt a posterior to several targets that share A, each with its own u and v; return prompts by target name."""
    settings = settings or AdaptSettings()
    require_backbone(posterior.card.backbone, backbone)
    particles = posterior.particles.to(backbone.device)
    return fit_targets(
        backbone,
        targets,
        posterior_candidates(particles, settings),
        settings,
        method="bmtpt",
        particles=particles,
        sources=posterior.card.sources,
        posterior=posterior.weights_sha256,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        listener=listener,
    )


def fit_targets(
    backbone: Backbone,
    targets: Sequence[TaskData],
    candidates: CandidateBuilder,
    settings: AdaptSettings,
    *,
    method: str,
    particles: Float[Tensor, "M P D"] | None = None,
    sources: Sequence[str] = (),
    posterior: str | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> dict[str, Prompt]:
    """Train any prompt method on one target, or on several that share A; every baseline runs through here.

    Args:
        candidates: Builds the starts and priors that compete, given the tokenised target rows.
        method: Name for the card.
        particles: Centres of the priors, if any candidate has one.
        sources, posterior: For the card.
    """
    with output_folder(folder, "prompt", resume=resume, overwrite=overwrite) as place:
        names = distinct([target.task.name for target in targets], "target")
        places = dict.fromkeys(names, place) if place is None or len(names) == 1 else {n: place / n for n in names}
        for each in places.values():
            require_free(each, "prompt", resume=resume, overwrite=overwrite)
        rows = all_target_rows(backbone, targets, settings)
        engine = backbone.engine
        stage = TargetPrompts(engine, rows, candidates(engine, rows), particles, settings)
        run = Run(backbone.identity, place, resume, listener)
        trained = train_targets(backbone, targets, stage, run, method=method, sources=sources, posterior=posterior)
        found = {}
        for k, (name, card) in enumerate(trained.cards.items()):
            prompt = stage.result(trained.tensors, k, trained.winners, card)
            found[name] = prompt.save(own, overwrite=True) if (own := places[name]) else prompt
        return found
