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

from bmtpt import prompts as initial
from bmtpt.artifacts import Posterior, PosteriorCard, Prompt, PromptMixture, require_backbone, versions
from bmtpt.backbone.choose import choose_engine
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.backbone.model.load import load_backbone
from bmtpt.data import epoch_rows, tokenise
from bmtpt.errors import DataError, SettingsError
from bmtpt.fitting import all_target_rows, backbone_card, distinct, now, train_targets
from bmtpt.methods.attempt import mixture_prompts
from bmtpt.methods.map_target import map_candidates
from bmtpt.methods.svgd_source import SvgdSource
from bmtpt.methods.target import Candidate, CandidateBuilder, TargetPrompts, TargetRows
from bmtpt.methods.task_factors import FactoredSource
from bmtpt.results import Result
from bmtpt.results import settings_hash as hash_of
from bmtpt.scoring import Evaluation, Prompts, ScorerKind, evaluate_prompts, make_scorer
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stage_rows import cut_counts, row_counts, source_rows
from bmtpt.stein.diagnostics import mean_gap_warning
from bmtpt.tasks import TaskData, TaskSpec, saved_task
from bmtpt.train.events import Listener
from bmtpt.train.run import Run, prepare_folder, require_free
from bmtpt.types import Example
from bmtpt.weight_tuning import TunedModel

SVGD_ONLY = (
    *("kernel", "bandwidth", "scope", "repulsion", "annealing", "init_steps", "task_factors", "factor_learning_rate"),
)
"""Settings of a source stage that one particle alone does not heed."""

JUDGED_ROWS = 256
"""Training rows of a target on which the particles are compared before one of them is a start."""


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


def adapt(
    posterior: Posterior,
    target: TaskData,
    settings: AdaptSettings | None = None,
    *,
    backbone: Backbone | None = None,
    folder: Path | None = None,
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
    backbone = backbone or load_backbone(posterior.card.backbone.name, precision=settings.precision)
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
    folder: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> dict[str, Prompt]:
    """Adapt a posterior to several targets that share A, each with its own u and v; return prompts by target name."""
    settings = settings or AdaptSettings()
    require_backbone(posterior.card.backbone, backbone.fingerprint, backbone.name)
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


def posterior_candidates(particles: Float[Tensor, "M P D"], settings: AdaptSettings) -> CandidateBuilder:
    """Return the builder of BMTPT's starts and priors; the best particle is the one with the lowest training NLL.

    That is judged on at most `JUDGED_ROWS` training rows of a target: a large target is not read M times over.
    """

    def build(engine: Engine, rows: Mapping[str, TargetRows]) -> list[Candidate]:
        if len(particles) == 1 or settings.ensemble or settings.start in ("mean", "particles"):
            return map_candidates(particles, [0.0] * len(particles), settings)  # no start depends on the losses
        losses = []
        for k, each in enumerate(rows.values()):
            count = min(len(each.train), JUDGED_ROWS)
            drawn = each.train.rows(epoch_rows(len(each.train), count, 0, seed=settings.seed, task=k))
            losses.append(engine.losses(particles, drawn).mean(dim=1))
        return map_candidates(particles, torch.stack(losses).mean(dim=0).tolist(), settings)

    return build


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
    folder: Path | None = None,
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
    rows = all_target_rows(backbone, targets, settings)
    engine = choose_engine(backbone, settings.engine, settings.memory, settings.cpu_tuning)
    places = {name: folder if folder is None or len(targets) == 1 else folder / name for name in rows}
    for place in places.values():
        require_free(place, resume=resume, overwrite=overwrite, kind="prompt")
    prepare_folder(folder, resume=resume, overwrite=overwrite, kind="prompt")
    stage = TargetPrompts(engine, rows, candidates(engine, rows), particles, settings)
    run = Run(backbone.fingerprint, folder, resume, listener)
    trained = train_targets(backbone, targets, stage, run, method=method, sources=sources, posterior=posterior)
    found = {}
    for k, (name, card) in enumerate(trained.cards.items()):
        prompts = trained.stage.composed(trained.tensors, k)[trained.winners]
        prompt = Prompt(prompts.detach().cpu(), card)
        place = places[name]
        found[name] = prompt.save(place, overwrite=overwrite or resume) if place else prompt
    return found


def evaluate(
    backbone: Backbone,
    prompt: Prompt | PromptMixture | TunedModel,
    examples: Sequence[Example],
    *,
    task: TaskSpec | None = None,
    scorer: ScorerKind | None = None,
    max_length: int | None = None,
) -> Evaluation:
    """Score a prompt or a tuned model on rows, through the forward path it was trained with.

    Args:
        examples: Usually `TaskData.test`.
        task: What the rows are; None takes the task the prompt was trained for.
        scorer: `rank`, `generate`, or None for the task's usual one.
        max_length: Longest text in tokens; None takes what the prompt was trained with.

    Raises:
        BackboneError: The prompt belongs to another model.
        DataError: No rows.
        SettingsError: The scorer does not fit the task or the number of prompts.
    """
    require_backbone(prompt.card.backbone, backbone.fingerprint, backbone.name)
    task = task or saved_task(prompt.card.task_definition)
    if not examples:
        raise DataError(f"task {task.name} has no rows to evaluate on")
    rows = tokenise(backbone, examples, max_length or prompt.card.settings.get("max_length") or task.max_length)
    return evaluate_prompts(
        _engine_of(backbone, prompt), _scorable(backbone, prompt), rows, make_scorer(backbone, task, scorer)
    )


def _engine_of(backbone: Backbone, prompt: Prompt | PromptMixture | TunedModel) -> Engine:
    """Return the engine that a prompt was trained with."""
    if isinstance(prompt, TunedModel):
        return prompt.engine
    noted = prompt.card.settings
    return choose_engine(backbone, noted.get("engine", "auto"), cpu_tuning=noted.get("cpu_tuning", "auto"))


def _scorable(backbone: Backbone, prompt: Prompt | PromptMixture | TunedModel) -> Prompts:
    if isinstance(prompt, Prompt):
        return prompt.prompts.to(backbone.device)
    if isinstance(prompt, TunedModel):
        return prompt.engine.no_prompt
    return mixture_prompts(backbone.embeddings, {k: v.to(backbone.device) for k, v in prompt.tensors.items()})


def result_rows(
    backbone: Backbone,
    prompt: Prompt | PromptMixture | TunedModel,
    target: TaskData,
    evaluation: Evaluation,
    *,
    study: str,
    settings_hash: str | None = None,
) -> list[Result]:
    """Return an evaluation as result lines, one per metric, calibration included."""
    task, card = target.task, prompt.card
    return [
        Result(
            study=study,
            method=card.method,
            backbone=backbone.name,
            sources=card.sources,
            target=task.name,
            shots=card.settings.get("shots"),
            seed=card.settings.get("seed", 0),
            metric=metric,
            value=value,
            primary=metric == task.primary,
            constant_answer=evaluation.constant_answer if metric == task.primary else None,
            invalid_share=evaluation.invalid_share / 100,
            trained_parameters=card.trained_parameters,
            trained_share=card.trained_parameters / backbone.parameters,
            steps=card.steps,
            seconds=card.seconds,
            settings_hash=settings_hash or hash_of(card.settings),
            data=target.status,
            versions=versions(),
        )
        for metric, value in {**evaluation.metrics, **evaluation.calibration}.items()
    ]


def learn_warnings(posterior: Posterior) -> list[str]:
    """Return, in plain words, what the last validation of a source stage warns about."""
    facts = posterior.card.diagnostics
    mean = list(facts["mean_nll"].values())
    particles = list(zip(*facts["particle_nll"].values(), strict=True))
    warning = mean_gap_warning(sum(mean) / len(mean), [sum(each) / len(each) for each in particles])
    return [] if warning is None else [warning]


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
