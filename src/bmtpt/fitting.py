"""The target stage of any method, from rows to trained tensors and their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from torch import Tensor

from bmtpt.artifacts import BackboneCard, PromptCard, versions
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import SettingsError
from bmtpt.methods.target import TargetRows, TargetStage
from bmtpt.settings import AdaptSettings
from bmtpt.stage_rows import row_counts, target_rows
from bmtpt.tasks import TaskData
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
        "targets": list(stage.targets),
        "posterior": posterior,
        "method": method,
        "rows": row_counts({name: each.train for name, each in stage.targets.items()}),
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


def backbone_card(backbone: Backbone) -> BackboneCard:
    """Return what an artifact notes about the model it belongs to."""
    return BackboneCard(
        name=backbone.name,
        fingerprint=backbone.fingerprint,
        parameters=backbone.parameters,
        d_model=backbone.d_model,
        vocab_size=backbone.embeddings.shape[0],
        decoder_only=backbone.decoder_only,
    )


def _winners(stage: TargetStage, outcome: Outcome) -> list[int]:
    if not stage.settings.ensemble:
        return [outcome.winner]
    by_start: dict[str, list[int]] = {}
    for r, candidate in enumerate(stage.candidates):
        by_start.setdefault(candidate.start_name, []).append(r)
    return [max(group, key=lambda r: outcome.state.best[r]) for group in by_start.values()]


def _selection(stage: TargetStage, outcome: Outcome, rows: TargetRows) -> dict[str, Any]:
    """Record how the model was chosen: every candidate's best validation, which is σ's curve too."""
    curve = [
        {**candidate.describe(), "best": list(key), "step": step}
        for candidate, key, step in zip(stage.candidates, outcome.state.best, outcome.state.best_step, strict=True)
    ]
    return {
        "winners": [curve[r] for r in _winners(stage, outcome)],
        "candidates": curve,
        "train_rows": len(rows.train),
        "validation_rows": len(rows.select),
        "texts_cut": rows.train.cut + rows.select.cut,
    }


def distinct(names: list[str], what: str) -> list[str]:
    """Return the names of tasks given by ``--{what}``; raise `SettingsError` if there is none, or one twice."""
    if not names:
        raise SettingsError(f"no {what} task was given; name at least one with --{what}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SettingsError(f"{what} task '{twice[0]}' was given twice; name each once")
    return names


def now() -> str:
    """Return the time for a card, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
