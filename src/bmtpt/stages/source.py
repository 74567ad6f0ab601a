"""The library's front door: learn a posterior, adapt it, evaluate and predict.

backbone = load_backbone("offline")
sources = [load_data(load_task(name), "offline") for name in ("sst2", "mrpc", "boolq")]
posterior = learn(backbone, sources, LearnSettings(steps=200))
prompt = adapt(posterior, load_data(load_task("cb"), "offline"), AdaptSettings(shots=32), backbone=backbone)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.saved import (
    Posterior,
    PosteriorCard,
    backbone_card,
    now,
    require_backbone,
    versions,
)
from bmtpt.backbone.choose import choose_engine
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import SettingsError
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.posterior import prompts as initial
from bmtpt.settings import LearnSettings
from bmtpt.stages.rows import cut_counts, distinct, row_counts, source_rows
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.run import Run, prepare_folder

SVGD_ONLY = (
    *("kernel", "bandwidth", "scope", "repulsion", "annealing", "init_steps", "task_factors", "factor_learning_rate"),
)
"""Settings of a source stage that one particle alone does not heed."""


def learn(
    backbone: Backbone,
    sources: Sequence[TaskData],
    settings: LearnSettings | None = None,
    *,
    folder: Path | None = None,
    start: Posterior | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Posterior:
    """Learn a posterior over soft prompts from source tasks (docs/method.md, section 1).

    Args:
        backbone: The frozen model.
        sources: Rows of the source tasks.
        settings: Of the source stage.
        start: With `particle_init` prompt, what `learn` returns for `start_settings`, if it was learned before; None
            learns it first. Runs that differ in nothing but SVGD share it.
        folder: Where checkpoints, events and the posterior go; None keeps the posterior in memory only.
        resume: Go on from the folder's checkpoint; ends in the same bits as a run that was never stopped (on a CPU).
        overwrite: Replace a finished or unfinished run in the folder.
        listener: Hears every event.

    Raises:
        SettingsError: No source, or one named twice; a start that does not fit.
        BackboneError: The start belongs to another model.
        DataError: A source has no rows.
        TrainingError: The loss is not a number.
        ArtifactError: The folder holds another run, or cannot be written.
    """
    settings = settings or LearnSettings()
    names = distinct([source.task.name for source in sources], "source")
    train, held_back = source_rows(backbone, sources, settings)
    engine = choose_engine(backbone, settings.engine, settings.memory, settings.cpu_tuning)
    _require_start(start, settings, backbone)
    prepare_folder(folder, resume=resume, overwrite=overwrite, kind="posterior")
    run = Run(backbone.fingerprint, folder, resume, listener)
    if settings.particle_init == "prompt" and start is None:
        start = learn_start(backbone, sources, settings, folder=folder, resume=resume, listener=listener)
    particles = initial_particles(backbone, settings, start)
    stage = settings.model_copy(update={"steps": settings.svgd_steps})
    method = (FactoredSource if stage.task_factors else SvgdSource)(engine, particles, train, held_back, stage)
    outcome = run.train(method, stage, {"sources": names, "rows": row_counts(train)})
    trained = SvgdSource(engine, outcome.tensors[0], train, held_back, stage)
    card = PosteriorCard(
        backbone=backbone_card(backbone),
        sources=tuple(names),
        settings=settings.model_dump(mode="json"),
        diagnostics={
            **_summary(trained.held_back_nll()),
            "svgd": trained.diagnosed(stage.steps - 1)._asdict(),
            "texts_cut": cut_counts(train),
        },
        steps=outcome.state.step + (start.card.steps if start else 0),
        seconds=outcome.state.seconds + (start.card.seconds if start else 0),
        versions=versions(),
        created=now(),
    )
    posterior = Posterior(outcome.tensors[0].cpu(), card)
    return posterior.save(folder, overwrite=overwrite or resume) if folder else posterior


def start_settings(settings: LearnSettings) -> LearnSettings:
    """Return the settings of the M = 1 stage in front of a source stage with `particle_init` prompt.

    What only SVGD heeds stands at its default: no kernel is at work where there is one particle.
    """
    plain = {name: LearnSettings.model_fields[name].default for name in SVGD_ONLY}
    here = {"particles": 1, "particle_init": "shared", "init_jitter": 0.0, "steps": settings.init_steps}
    return settings.model_copy(update=plain | here)


def learn_start(
    backbone: Backbone,
    sources: Sequence[TaskData],
    settings: LearnSettings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Posterior:
    """Learn the one prompt that particles start around, in the sub-folder `init` of a source stage's folder."""
    place = folder / "init" if folder else None
    first = start_settings(settings)
    return learn(backbone, sources, first, folder=place, resume=resume, overwrite=not resume, listener=listener)


def initial_particles(backbone: Backbone, settings: LearnSettings, start: Posterior | None) -> Float[Tensor, "M P D"]:
    """Start the particles as `particle_init` says: for `prompt`, around the one particle of ``start``."""
    generator = torch.Generator().manual_seed(settings.seed)
    table, ids = backbone.embeddings, backbone.frequent_ids()
    length, count = settings.prompt_length, settings.particles
    if settings.particle_init == "independent":
        return initial.independent_particles(table, ids, length, count, generator)
    draw = initial.from_vocabulary(table, ids, length, generator)
    centre = draw if start is None else start.particles[0].to(draw)
    return initial.around(centre, count, settings.init_jitter, generator)


def _require_start(start: Posterior | None, settings: LearnSettings, backbone: Backbone) -> None:
    """Refuse a start that these settings do not ask for, or that belongs to another model."""
    if start is None:
        return
    if settings.particle_init != "prompt":
        raise SettingsError(f"start is given and particle_init is '{settings.particle_init}'; set it to 'prompt'")
    if start.particles.shape[:2] != (1, settings.prompt_length):
        held = "{} particles of {} rows".format(*start.particles.shape)
        raise SettingsError(f"start holds {held}; give 1 particle of {settings.prompt_length} (prompt_length)")
    require_backbone(start.card.backbone, backbone.fingerprint, backbone.name)


def _summary(nll: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the held-back NLL of θ̄ and of the particles, and the gap between them: the first diagnostic."""
    mean = {name: values[0] for name, values in nll.items()}
    particles = {name: list(values[1:]) for name, values in nll.items()}
    gap = sum(mean[name] - sum(each) / len(each) for name, each in particles.items()) / len(mean)
    return {"mean_nll": mean, "particle_nll": particles, "mean_gap": gap}
