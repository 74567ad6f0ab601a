"""The source stage: learn a posterior over soft prompts (docs/method.md, section 1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import PosteriorCard, backbone_card, now, require_backbone, versions
from bmtpt.artifacts.folder import output_folder
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError
from bmtpt.methods.registry import Method, SourceSetup
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.posterior.prompts import around, from_vocabulary, independent_particles
from bmtpt.settings import LearnSettings
from bmtpt.stages.readout_prior import with_readout_prior
from bmtpt.stages.rows import distinct, row_digests, source_rows
from bmtpt.tasks import TaskData
from bmtpt.tasks.tokens import Tokenised, TrainingRows
from bmtpt.train.events import Listener
from bmtpt.train.loop import Loop

log = logging.getLogger("bmtpt")

SVGD_ONLY = [
    "kernel",
    "bandwidth",
    "scope",
    "repulsion",
    "annealing",
    "init_steps",
    "task_factors",
    "factor_learning_rate",
    "readout_prior",
]
"""Settings that have no effect on the prompt when M = 1."""


def learn(
    backbone: Backbone,
    sources: Sequence[TaskData],
    settings: LearnSettings | None = None,
    *,
    folder: str | Path | None = None,
    start: Posterior | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Posterior:
    """Learn a posterior over soft prompts from source tasks.

    Args:
        backbone: The frozen model.
        sources: Rows of the source tasks.
        settings: Settings of the source stage.
        start: Only with `particle_init` "prompt": the posterior of one particle that `learn_start` returns, so that
            runs that differ only in SVGD can share it. None learns it first.
        folder: Where checkpoints, events and the posterior are written; None keeps the posterior in memory.
        resume: Continue from the folder's checkpoint; ends in the same bits as an uninterrupted run (on a CPU).
        overwrite: Replace a finished or unfinished run in the folder.
        listener: Called with every event.

    Raises:
        SettingsError: There is no source, a source is given twice, or the start does not fit the settings.
        BackboneError: The start belongs to another model.
        DataError: A source has no rows.
        TrainingError: The loss is not a finite number, or memory ran out.
        ArtifactError: The folder holds another run or cannot be written.
    """
    settings = settings or LearnSettings()
    names = distinct([source.task.name for source in sources], "source")
    if start is not None:
        if settings.particle_init != "prompt":
            raise SettingsError(f"start is given and particle_init is '{settings.particle_init}'; set it to 'prompt'")
        if start.particles.shape[:2] != (1, settings.prompt_length):
            held = "{} particles of {} rows".format(*start.particles.shape)
            raise SettingsError(f"start holds {held}; give 1 particle of {settings.prompt_length} rows (prompt_length)")
        require_backbone(start.card.backbone, backbone)
    own = backbone.ranks.only_first(folder)
    with output_folder(own, "posterior", resume=resume, overwrite=overwrite) as place:
        train, held_back, scorers = source_rows(backbone, sources, settings)
        if settings.particle_init == "prompt" and start is None:
            start = learn_start(backbone, sources, settings, folder=place, resume=resume, listener=listener)
        stage = settings.model_copy(update={"steps": settings.svgd_steps})
        kind = FactoredSource if stage.task_factors else SvgdSource
        words = {name: scorer.answers for name, scorer in scorers.items()}
        method = kind(backbone.engine, initial_particles(backbone, settings, start), train, held_back, stage, words)
        identity = _identity(backbone, train, held_back)
        run = Loop(method, stage, folder=place, identity=identity, listener=listener, ranks=backbone.ranks)
        outcome = run.run(resume=resume)
        found = outcome.state.found
        for warning in found["diagnostics"]["warnings"]:
            log.warning(warning)
        mean, own = found["validation"]["mean_nll"], found["validation"]["particle_nll"]
        card = PosteriorCard(
            backbone=backbone_card(backbone),
            sources=tuple(names),
            settings=settings.model_dump(mode="json"),
            diagnostics={
                "mean_nll": mean,  # NLL of θ̄ on held-back rows, and of the particles
                "particle_nll": own,
                "mean_gap": fmean(mean[name] - fmean(each) for name, each in own.items()),
                "svgd": found["diagnostics"]["diagnostics"],
                "texts_cut": {name: rows.cut for name, rows in train.items()},
            },
            steps=outcome.state.step + (start.card.steps if start else 0),
            seconds=outcome.state.seconds + (start.card.seconds if start else 0),
            versions=versions(),
            created=now(),
        )
        posterior = Posterior(outcome.tensors[0].cpu(), card)
        if settings.readout_prior == "sources":
            posterior = with_readout_prior(backbone, posterior, sources)
        return posterior.save(place, overwrite=True) if place else posterior


def start_settings(settings: LearnSettings) -> LearnSettings:
    """Return the settings of the M = 1 stage that precedes a source stage with `particle_init` "prompt".

    Settings that only SVGD or its posterior uses are set to their defaults: one particle has no kernel.
    """
    plain = {name: LearnSettings.model_fields[name].default for name in SVGD_ONLY}
    here = {"particles": 1, "particle_init": "shared", "init_jitter": 0.0, "steps": settings.init_steps}
    return settings.model_copy(update=plain | here)


def learn_start(
    backbone: Backbone,
    sources: Sequence[TaskData],
    settings: LearnSettings,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Posterior:
    """Learn the one prompt that particles start around, in the sub-folder `init` of a source stage's folder."""
    place = Path(folder) / "init" if folder else None
    first = start_settings(settings)
    return learn(backbone, sources, first, folder=place, resume=resume, overwrite=not resume, listener=listener)


def initial_particles(backbone: Backbone, settings: LearnSettings, start: Posterior | None) -> Float[Tensor, "M P D"]:
    """Return where the particles start, as `particle_init` says; with "prompt", around the particle of ``start``."""
    generator = torch.Generator().manual_seed(settings.seed)
    rows = backbone.frequent_rows()
    length, count = settings.prompt_length, settings.particles
    if settings.particle_init == "independent":
        return independent_particles(rows, length, count, generator)
    draw = from_vocabulary(rows, length, generator)
    centre = draw if start is None else start.particles[0].to(draw)
    return around(centre, count, settings.init_jitter, generator)


def learn_own_source(
    method: Method,
    backbone: Backbone,
    sources: Sequence[TaskData],
    prompts: Mapping[str, Float[Tensor, "P D"]],
    settings: LearnSettings,
    options: Any = None,
    *,
    folder: Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Tensor]:
    """Run the source stage that only this method has; return the tensors that it keeps.

    Args:
        method: Has an `own_source`.
        prompts: The prompt tuned on each source alone, on the backbone's device.
        settings: As for `learn`; one prompt is trained, from one vocabulary draw.
        options: The method's own; None for its defaults.
        folder: For events and checkpoints; a run that is there goes on where it stopped.

    Raises:
        BackboneError: The method cannot run on this model.
        DataError, TrainingError, ArtifactError: As `learn`.
    """
    assert method.own_source is not None
    method.require_runs_on(backbone.name, backbone.model.config)
    settings = settings.model_copy(update={"particles": 1, "particle_init": "shared"})
    options = method.options() if options is None else options
    train, held_back, _ = source_rows(backbone, sources, settings)
    (start,) = initial_particles(backbone, settings, None)
    stage = method.own_source.stage(SourceSetup(backbone, train, held_back, settings, options, prompts, start))
    identity = {
        "method": method.name,
        "options": options.model_dump(mode="json"),
        "prompts": [sha256(prompt.cpu().numpy().tobytes()).hexdigest() for prompt in prompts.values()],
        **_identity(backbone, train, held_back),
    }
    run = Loop(stage, settings, folder=folder, identity=identity, listener=listener, ranks=backbone.ranks)
    outcome = run.run(resume=True)
    return {name: tensor.detach() for name, tensor in method.own_source.result(outcome.tensors).items()}


def _identity(
    backbone: Backbone, train: Mapping[str, TrainingRows], held_back: Mapping[str, Tokenised]
) -> dict[str, Any]:
    """Return what must be the same for a source stage to be resumed."""
    rows = {"rows": row_digests(train), "held_back": row_digests(held_back)}
    return {**rows, "backbone": dict(backbone.identity)}
