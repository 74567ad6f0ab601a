"""A task's examples as the tokenised rows that the source stage and the target stage train and validate on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import DataError, SettingsError
from bmtpt.inference.score import make_scorer
from bmtpt.methods.target import TargetRows
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks import TaskData, few_shot
from bmtpt.tasks.tokens import Tokenised, tokenise
from bmtpt.types import Example


def source_rows(
    backbone: Backbone, sources: Sequence[TaskData], settings: LearnSettings
) -> tuple[dict[str, Tokenised], dict[str, Tokenised]]:
    """Return training and held-back rows by source task.

    Raises:
        DataError: A source has no rows.
    """
    train, held_back = {}, {}
    for source in sources:
        length = settings.max_length or source.task.max_length
        if not source.train or not source.select:
            raise DataError(f"source {source.task.name} has no training or no validation rows")
        rows = _some(source.train, settings.train_rows, settings.seed)
        train[source.task.name] = tokenise(backbone, rows, length)
        held = _some(source.select, settings.validation_rows, seed=0)
        held_back[source.task.name] = tokenise(backbone, held, length)
    return train, held_back


def target_rows(backbone: Backbone, target: TaskData, settings: AdaptSettings) -> TargetRows:
    """Return a target's training rows (all, or a few-shot draw by the run's seed) and validation rows.

    Raises:
        DataError: There are no rows, or fewer than the shots asked for.
        SettingsError: An ensemble is asked for free answers, which have no average.
    """
    if settings.ensemble and not target.task.fixed_words:
        raise SettingsError(f"target {target.task.name} has no label words, so an ensemble cannot answer it")
    length = settings.max_length or target.task.max_length
    train = _shots(target, settings)
    select = _some(target.select, settings.validation_rows, seed=0)
    if not train or not select:
        raise DataError(f"target {target.task.name} has no training or no validation rows")
    return TargetRows(
        tokenise(backbone, train, length), tokenise(backbone, select, length), make_scorer(backbone, target.task)
    )


def _shots(target: TaskData, settings: AdaptSettings) -> Sequence[Example]:
    if settings.shots is None:
        return target.train
    try:
        return few_shot(target.train, settings.shots, settings.seed)
    except DataError as error:
        raise DataError(f"target {target.task.name}: {error}") from error


def _some(examples: Sequence[Example], count: int | None, seed: int) -> Sequence[Example]:
    """Return at most ``count`` rows, a seeded draw in the original order."""
    if count is None or len(examples) <= count:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [examples[i] for i in sorted(order[:count].tolist())]


def row_counts(rows: Mapping[str, Tokenised]) -> dict[str, int]:
    """Return the number of rows of each task."""
    return {name: len(each) for name, each in rows.items()}


def cut_counts(rows: Mapping[str, Tokenised]) -> dict[str, int]:
    """Return how many texts of each task were cut to the length limit."""
    return {name: each.cut for name, each in rows.items()}


def distinct(names: list[str], what: str) -> list[str]:
    """Return the names of tasks given by ``--{what}``; raise `SettingsError` if there is none, or one twice."""
    if not names:
        raise SettingsError(f"no {what} task was given; name at least one with --{what}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SettingsError(f"{what} task '{twice[0]}' was given twice; name each once")
    return names
