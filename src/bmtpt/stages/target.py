"""The target stage of any method, from rows to trained tensors and their cards."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bmtpt.artifacts.card import PromptCard, backbone_card, now, require_backbone, versions
from bmtpt.artifacts.folder import output_folder, require_free
from bmtpt.artifacts.readouts import to_tensors
from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError
from bmtpt.inference.calibrate import fit_calibrated
from bmtpt.methods.map_target import BMTPT
from bmtpt.methods.registry import Learned, Method, Options, Setup
from bmtpt.methods.target import TargetRows, TargetStage
from bmtpt.settings import AdaptSettings
from bmtpt.stages.rows import distinct, row_digests, target_rows
from bmtpt.stages.trained import prompts_of
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.loop import Loop, Outcome

log = logging.getLogger("bmtpt")

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
        SettingsError: No target, one named twice, or several for a method that trains one at a time.
        DataError: Too few rows for the shots asked for.
        TrainingError, ArtifactError: As for `learn`.
    """
    method.require_runs_on(backbone.name, backbone.model.config)
    options = method.options() if options is None else options
    settings = method.adjusted(settings or AdaptSettings(), options)
    learned = learned or Learned()
    fitted = [option for option in ("readout", "calibrate") if getattr(settings, option) != "none"]
    if method.tunes_weights and fitted:
        raise SettingsError(
            f"method '{method.name}' tunes weights, which have neither readout nor temperature; leave {fitted[0]} out"
        )
    names = distinct([target.task.name for target in targets], "target")
    if len(names) > 1 and not method.together:
        raise SettingsError(f"method '{method.name}' cannot train several targets in one run; give it one at a time")
    for name in names:
        if name in learned.sources:
            log.warning(f"target {name} was a source task, so its scores do not tell how well a new task is learned")
    with output_folder(folder, "prompt", resume=resume, overwrite=overwrite) as place:
        places = {name: place if place is None or len(names) == 1 else place / name for name in names}
        for each in places.values():
            require_free(each, "prompt", resume=resume, overwrite=overwrite)
        rows = {target.task.name: target_rows(backbone, target, settings) for target in targets}
        total = sum(len(each.train) for each in rows.values())
        if len(rows) > 1 and settings.batch_size > total:
            log.warning(
                f"batch_size is {settings.batch_size:,}, and the targets have {total:,} training rows: "
                "every step takes each of them at most once"
            )
        stage = method.build(Setup(backbone, rows, settings, options, budget, prompt_length, learned))
        identity = _identity(method, backbone, options, learned, rows)
        run = Loop(stage, settings, folder=place, identity=identity, patience=settings.patience, listener=listener)
        outcome = run.run(resume=resume)
        winners = _winners(stage, outcome)
        found = {}
        for k, target in enumerate(targets):
            name = target.task.name
            card = _card(method, backbone, target, stage, options, learned, outcome, winners)
            result = stage.result([tensor.detach() for tensor in outcome.tensors], k, winners, card)
            if fitted:
                result = _read_out(backbone, result, rows[name], settings)
            found[name] = result.save(own, overwrite=True) if (own := places[name]) else result
        return found


def _identity(
    method: Method, backbone: Backbone, options: Options, learned: Learned, rows: Mapping[str, TargetRows]
) -> dict[str, Any]:
    """Return what must be the same for a target stage to be resumed."""
    return {
        "method": method.name,
        "options": options.model_dump(mode="json"),
        "posterior": learned.posterior.weights_sha256 if learned.posterior else None,
        "rows": row_digests({name: each.train for name, each in rows.items()}),
        "validation": row_digests({name: each.select for name, each in rows.items()}),
        "backbone": dict(backbone.identity),
    }


def _read_out(backbone: Backbone, result: WithReadouts, rows: TargetRows, settings: AdaptSettings) -> WithReadouts:
    """Return what was trained with the readouts and the temperature of its labelled rows; its card counts the fit."""
    started = time.perf_counter()
    # An untouched prompt was trained on no row, so all of the labelled ones may judge.
    held_back = rows.select if len(rows.select) and (settings.steps or not rows.lent) else None
    readouts, calibration = fit_calibrated(
        backbone.engine, prompts_of(backbone, result), rows.labelled, rows.scorer, settings, held_back
    )
    numbers = sum(tensor.numel() for tensor in to_tensors(readouts).values()) if settings.readout != "none" else 0
    card = result.card.model_copy(
        update={
            "seconds": result.card.seconds + time.perf_counter() - started,
            "trained_parameters": result.card.trained_parameters + numbers + (calibration is not None),
            "calibration": calibration,
        }
    )
    return replace(result, card=card, readouts=readouts)


def _card(
    method: Method,
    backbone: Backbone,
    target: TaskData,
    stage: TargetStage,
    options: Options,
    learned: Learned,
    outcome: Outcome,
    winners: list[int],
) -> PromptCard:
    """Return where the result for one target comes from, with every candidate's best validation: σ's curve."""
    state, R, rows = outcome.state, len(stage.candidates), stage.targets[target.task.name]
    best, steps = (state.best, state.best_step) if state.best else ([()] * R, [state.step] * R)
    curve = [
        {**candidate.describe(), "best": list(key), "step": step}
        for candidate, key, step in zip(stage.candidates, best, steps, strict=True)
    ]
    own = {"options": options.model_dump(mode="json")} if method.options.model_fields else {}
    return PromptCard(
        backbone=backbone_card(backbone),
        sources=() if method.needs == "nothing" else learned.sources,
        settings=stage.settings.model_dump(mode="json") | own,
        steps=state.step,
        seconds=state.seconds,
        versions=versions(),
        created=now(),
        task=target.task.name,
        task_definition=target.task.model_dump(mode="json"),
        method=method.name,
        posterior=learned.posterior.weights_sha256 if learned.posterior else None,
        selection={
            "winners": [curve[r] for r in winners],
            "candidates": curve,
            "train_rows": len(rows.train),
            "validation_rows": len(rows.select),
            "texts_cut": rows.train.cut + rows.select.cut,
        },
        trained_parameters=stage.trained_parameters() * len(winners) if stage.settings.steps else 0,
        answer_tokens=rows.scorer.answer_tokens,
    )


def _winners(stage: TargetStage, outcome: Outcome) -> list[int]:
    """Return the best candidate, or the best of each start for an ensemble; the first where nothing is selected."""
    if not stage.settings.ensemble:
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
