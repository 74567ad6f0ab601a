"""Score what a stage trained on a task's rows, and write the scores as result lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from bmtpt.artifacts.card import TargetCard, require_backbone, versions
from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, SettingsError
from bmtpt.inference.evaluation import Evaluation
from bmtpt.inference.score import chosen_way, evaluate_classifier, evaluate_prompts, make_scorer
from bmtpt.methods.classifier import Classifier
from bmtpt.methods.weights import TunedModel
from bmtpt.results import Result, result_lines
from bmtpt.results import settings_hash as hash_of
from bmtpt.stages.trained import Prompted, Trained, kept_bytes, prompts_of
from bmtpt.tasks import TaskData, TaskSpec, saved_task
from bmtpt.tasks.tokens import tokenise
from bmtpt.types import Example, Normalise, ScorerKind

log = logging.getLogger("bmtpt")

TRAINED_WITH = ("name", "text", "labels", "steps")
"""Keys of a task that decide what a prompt for it has learned."""


def evaluate(
    backbone: Backbone,
    prompt: Trained,
    examples: Sequence[Example],
    *,
    task: TaskSpec | None = None,
    scorer: ScorerKind | None = None,
    max_length: int | None = None,
    normalise: Normalise | None = None,
) -> Evaluation:
    """Score what was trained on rows, through the forward path that it would be trained with.

    A classifier answers its own task in its own way: ``scorer``, ``max_length`` and ``normalise`` are for prompts.

    Args:
        examples: Usually `TaskData.test`.
        task: What the rows are; None takes the task the prompt was trained for.
        scorer: `rank`, `generate`, or None for the task's usual one.
        max_length: Longest text in tokens; None takes what the prompt was trained with.
        normalise: How label words are made comparable; None takes what the prompt was selected with.

    Raises:
        BackboneError: The prompt belongs to another model.
        DataError: No rows.
        SettingsError: The scorer does not fit the task or the number of prompts.
    """
    require_backbone(prompt.card.backbone, backbone)
    own_task = saved_task(prompt.card.task_definition)
    task = task or own_task
    if unlike := [key for key in TRAINED_WITH if getattr(task, key) != getattr(own_task, key)]:
        log.warning(
            "the prompt was trained for task '%s' and is evaluated on '%s', which has another %s",
            own_task.name, task.name, " and another ".join(unlike),
        )  # fmt: skip
    if not examples:
        raise DataError(f"task {task.name} has no rows to evaluate on")
    started = time.perf_counter()
    if isinstance(prompt, Classifier):
        found = evaluate_classifier(task, examples, prompt.fitted.probabilities(examples))
    else:
        found = _evaluate_prompted(backbone, prompt, examples, task, scorer, max_length, normalise)
    return replace(found, seconds=time.perf_counter() - started)


def _evaluate_prompted(
    backbone: Backbone,
    prompt: Prompted,
    examples: Sequence[Example],
    task: TaskSpec,
    scorer: ScorerKind | None,
    max_length: int | None,
    normalise: Normalise | None,
) -> Evaluation:
    """Score what answers through the model; arguments and errors as `evaluate`."""
    rows = tokenise(backbone, examples, max_length or prompt.card.settings.get("max_length") or task.max_length)
    engine = prompt.engine if isinstance(prompt, TunedModel) else backbone.engine
    own = task.name == prompt.card.task  # the limit on its answers is that of the training answers
    limit = prompt.card.answer_tokens if own else None
    readouts = () if isinstance(prompt, TunedModel) else prompt.readouts
    way = chosen_way(normalise, prompt.card.settings, readouts) if normalise or task.fixed_words else "none"
    reading = make_scorer(backbone, task, scorer, answer_tokens=limit, normalise=way)
    if readouts and len(task.label_words) != len(readouts[0].offset):
        raise SettingsError(
            f"the prompt's readout is for the {len(readouts[0].offset)} labels of task {prompt.card.task}, and task "
            f"{task.name} has {len(task.label_words)}; evaluate it on its own task"
        )
    return evaluate_prompts(engine, prompts_of(backbone, prompt), rows, reading, readouts)


STILL_RATE = 1e-9
"""A learning rate below this moves no number of a prompt: what studies call untouched."""


def _moved(card: TargetCard) -> bool | None:
    """Return whether any kept prompt differs from its start, or None where a card does not say."""
    if "winners" not in card.selection:
        return None
    return card.settings["learning_rate"] >= STILL_RATE and any(w["step"] > 0 for w in card.selection["winners"])


def result_rows(
    backbone: Backbone,
    prompt: Trained,
    target: TaskData,
    evaluation: Evaluation,
    *,
    study: str,
    settings_hash: str | None = None,
    source_seed: int | None = None,
    variant: str = "",
) -> list[Result]:
    """Return an evaluation as result lines, one per metric, calibration included."""
    card = prompt.card
    lines = result_lines(
        {**evaluation.metrics, **evaluation.calibration},
        parameters=backbone.parameters,
        primary=target.task.primary,
        constant_answer=evaluation.constant_answer,
        invalid_share=evaluation.invalid_share / 100,
        study=study,
        method=card.method,
        variant=variant,
        backbone=backbone.name,
        sources=card.sources,
        target=target.task.name,
        shots=card.settings.get("shots"),
        seed=card.settings.get("seed", 0),
        trained_parameters=card.trained_parameters,
        steps=card.steps,
        seconds=card.seconds,
        settings_hash=settings_hash or hash_of(card.settings),
        source_seed=source_seed,
        train_rows=card.selection.get("train_rows"),
        selection_rows=card.selection.get("validation_rows"),
        moved=_moved(card),
        kept_bytes=kept_bytes(prompt),
        predict_seconds=None if evaluation.seconds is None else evaluation.seconds / len(evaluation.predictions),
        data=target.status,
        versions=versions(),
    )
    curve = tuple(
        (b, n, round(confidence, 4), round(accuracy, 4)) for b, n, confidence, accuracy in evaluation.reliability
    )
    return [line.model_copy(update={"reliability": curve}) if line.metric == "ece" else line for line in lines]
