"""The target stage of any method, from rows to trained tensors and their cards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bmtpt.artifacts.card import PromptCard, backbone_card, now, require_backbone, versions
from bmtpt.artifacts.folder import output_folder, require_free
from bmtpt.artifacts.readouts import fitted_numbers
from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError
from bmtpt.inference.calibrate import fit_calibrated
from bmtpt.methods.classifier import Classifier, Fitted
from bmtpt.methods.map_target import BMTPT
from bmtpt.methods.registry import Learned, Method, Options, Setup
from bmtpt.methods.target import TargetRows, TargetStage
from bmtpt.settings import AdaptSettings
from bmtpt.stages.readout_prior import with_widths
from bmtpt.stages.rows import distinct, row_digests, target_rows
from bmtpt.stages.trained import prompts_of
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.loop import Loop, Outcome

log = logging.getLogger("bmtpt")

NOT_CLASSIFIERS = {
    "steps": 0,
    "selection": "none",
    "likelihood": "tokens",
    "readout": "none",
    "average": "none",
    "calibrate": "none",
}
"""Settings that methods without training steps ignore, turned off."""

WithReadouts = TypeVar("WithReadouts", Prompt, PromptMixture)


def fit_method(
    method: Method,
    backbone: Backbone,
    targets: Sequence[TaskData],
    settings: AdaptSettings | None = None,
    options: Any = None,
    *,
    learned: Learned | None = None,
    budget: int = 1,
    prompt_length: int = 100,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train any method on one target, or on several together; return what predicts each (`Trained`) by its name.

    Args:
        settings: Of the target stage; each method uses those that apply to it.
        options: The method's own; None for its defaults.
        learned: What the source stages that the method needs have learned.
        budget: Starts or priors that may compete.
        prompt_length: P of prompts that start without a source.
        folder, resume, overwrite, listener: As for `learn`; several targets have folders of their own in it.

    Raises:
        BackboneError: The method cannot run on this model.
        SettingsError: No target, one named twice, several for a method that trains one at a time, or what the method
            cannot do.
        DataError: Too few rows for the shots asked for.
        TrainingError, ArtifactError: As for `learn`.
    """
    method.require_runs_on(backbone.name, backbone.model.config)
    options = method.options() if options is None else options
    settings = settled(method, targets, settings or AdaptSettings(), options)
    learned = learned or Learned()
    fitted = [option for option in ("readout", "calibrate") if getattr(settings, option) != "none"]
    names = distinct([target.task.name for target in targets], "target")
    _require_fit(method, targets, fitted, folder)
    for name in names:
        if name in learned.sources:
            log.warning(f"target {name} was a source task, so its scores do not tell how well a new task is learned")
    if method.classifier is not None:
        return {names[0]: _classified(method.classifier, method, backbone, targets[0], settings, options)}
    own = backbone.ranks.only_first(folder)
    with output_folder(own, "prompt", resume=resume, overwrite=overwrite) as place:
        places = {name: place if place is None or len(names) == 1 else place / name for name in names}
        for each in places.values():
            require_free(each, "prompt", resume=resume, overwrite=overwrite)
        rows = {target.task.name: target_rows(backbone, target, settings) for target in targets}
        settings = with_widths(settings, learned.posterior, rows.values())
        total = sum(len(each.train) for each in rows.values())
        if len(rows) > 1 and settings.batch_size > total:
            log.warning(
                f"batch_size is {settings.batch_size:,}, and the targets have {total:,} training rows: "
                "every step takes each of them at most once"
            )
        setup = Setup(backbone, rows, settings, options, budget, prompt_length, learned)
        stage = method.build(setup)
        stage.read_starts()
        identity = _identity(method, backbone, options, learned, rows)
        run = Loop(
            stage,
            settings,
            folder=place,
            identity=identity,
            patience=settings.patience,
            listener=listener,
            ranks=backbone.ranks,
        )
        outcome = run.run(resume=resume)
        winners = _winners(stage, outcome)
        found = {}
        for k, target in enumerate(targets):
            name = target.task.name
            card = _card(method, setup, target, stage, outcome, winners)
            result = stage.result([tensor.detach() for tensor in outcome.tensors], k, winners, card)
            if fitted:
                result = _read_out(backbone, result, rows[name], settings)
            found[name] = result.save(at, overwrite=True) if (at := places[name]) else result
        return found


def settled(method: Method, targets: Sequence[TaskData], settings: AdaptSettings, options: Any) -> AdaptSettings:
    """Return the settings with what the targets and the method decide, all but the widths of `readout_prior`."""
    words = all(target.task.fixed_words for target in targets)
    return method.adjusted(settings.decided(words=words, prompts=not method.tunes_weights), options)


def _require_fit(method: Method, targets: Sequence[TaskData], fitted: Sequence[str], folder: str | Path | None) -> None:
    """Refuse targets and settings that a method cannot have, among them what would be ``fitted`` after it."""
    if method.tunes_weights and fitted:
        raise SettingsError(
            f"method '{method.name}' tunes weights, which have neither readout nor temperature; leave {fitted[0]} out"
        )
    if len(targets) > 1 and not method.together:
        raise SettingsError(f"method '{method.name}' cannot train several targets in one run; give it one at a time")
    if method.classifier is not None and folder is not None:
        raise SettingsError(f"method '{method.name}' keeps nothing on disk; leave folder out")
    for target in targets:
        if method.label_words_only and not target.task.fixed_words:
            raise SettingsError(f"target {target.task.name} has no label words, which method '{method.name}' needs")


def _classified(
    fit: Callable[[Setup], Fitted],
    method: Method,
    backbone: Backbone,
    target: TaskData,
    settings: AdaptSettings,
    options: Options,
) -> Classifier:
    """Fit a method without training steps to all the rows that it is given."""
    settings = settings.model_copy(update=NOT_CLASSIFIERS)
    rows = target_rows(backbone, target, settings)
    setup = Setup(backbone, {target.task.name: rows}, settings, options, 1, 0, Learned())
    found = fit(setup)
    used = len(rows.train) if found.trained_parameters else 0
    selection = {"train_rows": used, "validation_rows": 0, "texts_cut": rows.train.cut}
    figures = {"steps": 0, "seconds": found.seconds, "trained_parameters": found.trained_parameters}
    return Classifier(found, _target_card(method, setup, target, selection, figures))


def _identity(
    method: Method, backbone: Backbone, options: Options, learned: Learned, rows: Mapping[str, TargetRows]
) -> dict[str, Any]:
    """Return what must be the same for a target stage to be resumed."""
    texts = {name: each.unlabelled for name, each in rows.items() if each.unlabelled}
    return {
        "method": method.name,
        "options": options.model_dump(mode="json"),
        "posterior": learned.posterior.weights_sha256 if learned.posterior else None,
        "rows": row_digests({name: each.train for name, each in rows.items()}),
        "validation": row_digests({name: each.select for name, each in rows.items()}),
        "backbone": dict(backbone.identity),
    } | ({"texts": row_digests(texts)} if texts else {})


def read_again(backbone: Backbone, result: WithReadouts, target: TaskData, changes: Mapping[str, Any]) -> WithReadouts:
    """Return what was trained with a readout that is fitted to its labelled rows afterwards, in place of any it has.

    Args:
        changes: Settings of the target stage that concern the readout, if they are not to be its own.
    """
    earlier = fitted_numbers(result.readouts) + (result.card.calibration is not None)
    trained = result.card.trained_parameters - earlier
    known = {name: value for name, value in result.card.settings.items() if name in AdaptSettings.model_fields}
    settings = AdaptSettings.model_validate({**AdaptSettings.BEFORE, **known, **changes})
    rows = target_rows(backbone, target, settings)
    noted = {
        "settings": result.card.settings | {**changes},
        "trained_parameters": trained,
        "selection": result.card.selection | {"unlabelled_texts": len(rows.texts)},
    }
    plain = replace(result, card=result.card.model_copy(update=noted), readouts=())
    return _read_out(backbone, plain, rows, settings)


def _read_out(backbone: Backbone, result: WithReadouts, rows: TargetRows, settings: AdaptSettings) -> WithReadouts:
    """Return what was trained with the readouts and the temperature of its labelled rows; its card counts the fit."""
    started = time.perf_counter()
    # An untouched prompt was trained on no row, so all of the labelled ones may judge.
    held_back = rows.select if len(rows.select) and (settings.steps or not rows.lent) else None
    readouts, calibration = fit_calibrated(
        backbone.engine, prompts_of(backbone, result), rows.labelled, rows.scorer, settings, held_back, rows.texts
    )
    numbers = fitted_numbers(readouts) if settings.readout != "none" else 0
    card = result.card.model_copy(
        update={
            "seconds": result.card.seconds + time.perf_counter() - started,
            "trained_parameters": result.card.trained_parameters + numbers + (calibration is not None),
            "calibration": calibration,
        }
    )
    return replace(result, card=card, readouts=readouts)


def _card(
    method: Method, setup: Setup, target: TaskData, stage: TargetStage, outcome: Outcome, winners: list[int]
) -> PromptCard:
    """Return where the result for one target comes from, with every candidate's best validation: σ's curve."""
    state, R, rows = outcome.state, len(stage.candidates), stage.targets[target.task.name]
    best, steps = (state.best, state.best_step) if state.best else ([()] * R, [state.step] * R)
    curve = [
        {**candidate.describe(), "best": list(key), "step": step}
        for candidate, key, step in zip(stage.candidates, best, steps, strict=True)
    ]
    selection = {
        "winners": [curve[r] for r in winners],
        "candidates": curve,
        "train_rows": len(rows.train),
        "validation_rows": len(rows.select),
        "unlabelled_texts": len(rows.texts),
        "texts_cut": rows.train.cut + rows.select.cut,
    }
    trained = stage.trained_parameters() * len(winners) if stage.settings.steps else 0
    figures = {"steps": state.step, "seconds": state.seconds, "trained_parameters": trained}
    return _target_card(method, setup, target, selection, figures)


def _target_card(
    method: Method, setup: Setup, target: TaskData, selection: dict[str, Any], figures: dict[str, Any]
) -> PromptCard:
    """Return the card of what predicts one target, given how it was chosen and what it took."""
    learned, own = setup.learned, {}
    if method.options.model_fields:
        own = {"options": setup.options.model_dump(mode="json")}
    return PromptCard(
        backbone=backbone_card(setup.backbone),
        sources=() if method.needs == "nothing" else learned.sources,
        settings=setup.settings.model_dump(mode="json") | own,
        versions=versions(),
        created=now(),
        task=target.task.name,
        task_definition=target.task.model_dump(mode="json"),
        method=method.name,
        posterior=learned.posterior.weights_sha256 if learned.posterior else None,
        selection=selection,
        answer_tokens=setup.rows[target.task.name].scorer.answer_tokens,
        **figures,
    )


def _winners(stage: TargetStage, outcome: Outcome) -> list[int]:
    """Return the best candidate, or that of each start if all are kept; the first where nothing is selected."""
    if not stage.settings.keeps_every_start:
        return [outcome.winner]
    by_start: dict[str, list[int]] = {}
    for r, candidate in enumerate(stage.candidates):
        by_start.setdefault(candidate.start_name, []).append(r)
    best = outcome.state.best
    return [max(group, key=lambda r: best[r]) if best else group[0] for group in by_start.values()]


def adapt(
    posterior: Posterior, target: TaskData, settings: AdaptSettings | None = None, *, backbone: Backbone, **run: Any
) -> Prompt:
    """Adapt a posterior to one target by MAP (docs/method.md, section 2). Arguments and errors as `adapt_together`."""
    return adapt_together(posterior, [target], settings, backbone=backbone, **run)[target.task.name]


def adapt_together(
    posterior: Posterior,
    targets: Sequence[TaskData],
    settings: AdaptSettings | None = None,
    *,
    backbone: Backbone,
    **run: Any,
) -> dict[str, Prompt]:
    """Adapt a posterior to several targets that share A, each with its own u and v; return prompts by target name.

    Args:
        posterior: The prior's source.
        targets: Rows of the target tasks.
        settings: Settings of the target stage.
        backbone: The frozen model.
        run: ``folder``, ``resume``, ``overwrite`` and ``listener``, as for `learn`.

    Raises:
        BackboneError: The posterior belongs to another model.
        DataError: There are too few rows for the shots asked for.
        SettingsError, TrainingError, ArtifactError: As `fit_method`.
    """
    require_backbone(posterior.card.backbone, backbone)
    return fit_method(BMTPT, backbone, targets, settings, learned=Learned(posterior.card.sources, posterior), **run)
