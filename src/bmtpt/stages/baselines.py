"""Stages of the baselines that `api.learn` and `api.fit_targets` do not cover: MPT's source stage, and ATTEMPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import MixtureCard
from bmtpt.artifacts.saved import PromptMixture
from bmtpt.backbone.choose import choose_engine
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import BackboneError
from bmtpt.methods.attempt import Attempt
from bmtpt.methods.mpt import MptSource, target_start
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.posterior.prompts import Decomposed
from bmtpt.settings import AdaptSettings, AttemptSettings, LearnSettings, MptSettings
from bmtpt.stages.rows import row_digests, source_rows
from bmtpt.stages.source import initial_particles
from bmtpt.stages.target import all_target_rows, train_targets
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.run import Run


def learn_mpt(
    backbone: Backbone,
    sources: Sequence[TaskData],
    teachers: Mapping[str, Float[Tensor, "P D"]],
    settings: LearnSettings,
    distillation: MptSettings,
    *,
    folder: Path | None = None,
    listener: Listener | None = None,
) -> Decomposed:
    """Learn MPT's shared prompt and the mean of its factors from source tasks.

    Args:
        teachers: The prompt tuned on each source alone, on the backbone's device.
        settings: Of the source stage, as for `api.learn`; there is always one particle, and each step distils, whatever
            `particle_init` says: its prompt starts from one vocabulary draw.
        distillation: λ and the temperature.
        folder: For events and checkpoints; a run that is there goes on where it stopped.

    Raises:
        BackboneError: The engine cannot say what distillation compares.
        DataError, TrainingError, ArtifactError: As `api.learn`.
    """
    settings = settings.model_copy(update={"particles": 1, "particle_init": "shared"})
    train, held_back = source_rows(backbone, sources, settings)
    engine = choose_engine(backbone, settings.engine, settings.memory, settings.cpu_tuning)
    if not isinstance(engine, PassEngine):
        raise BackboneError(f"MPT distils encoder-decoder models, and backbone '{backbone.name}' is none")
    run = Run(backbone.fingerprint, folder, True, listener)
    (start,) = initial_particles(backbone, settings, None)
    method = MptSource(engine, start, teachers, train, held_back, settings, distillation)
    tasks = {
        "rows": row_digests(train),
        "held_back": row_digests(held_back),
        "distillation": distillation.model_dump(mode="json"),
        "teachers": [sha256(prompt.cpu().numpy().tobytes()).hexdigest() for prompt in teachers.values()],
    }
    return Decomposed(*(part.detach() for part in target_start(run.train(method, settings, tasks).tensors)))


def fit_attempt(
    backbone: Backbone,
    targets: Sequence[TaskData],
    source_prompts: Mapping[str, Float[Tensor, "P D"]],
    settings: AdaptSettings,
    attention: AttemptSettings,
    *,
    candidates: int = 1,
    listener: Listener | None = None,
) -> dict[str, PromptMixture]:
    """Train ATTEMPT on one target, or on several that share the attention.

    Args:
        source_prompts: The prompt tuned on each source alone, on the backbone's device.
        settings: Of the target stage; prior, decomposition and ensemble do not apply.
        attention: Width and learning rate of the attention.
        candidates: Starts of the target prompt that compete on validation.

    Raises:
        SettingsError, DataError, TrainingError: As `api.fit_targets`.
    """
    unused = {"prior": "none", "ensemble": False, "decompose": False, "freeze_full": False}
    settings = settings.model_copy(update=unused)
    rows = all_target_rows(backbone, targets, settings)
    sources = torch.stack(list(source_prompts.values()))
    stage = Attempt(
        choose_engine(backbone, settings.engine, settings.memory, settings.cpu_tuning),
        rows,
        plain_candidates(backbone, sources.shape[1], settings.seed, candidates),
        settings,
        table=backbone.embeddings,
        sources=sources,
        attention=attention,
    )
    run = Run(backbone.fingerprint, None, False, listener)
    trained = train_targets(backbone, targets, stage, run, method="attempt", sources=tuple(source_prompts))
    (winner,) = trained.winners
    found = {}
    for k, (name, card) in enumerate(trained.cards.items()):
        tensors = {key: value.cpu() for key, value in stage.mixture(trained.tensors, k, winner).items()}
        noted = {**card.settings, "attention": attention.model_dump(mode="json")}
        found[name] = PromptMixture(tensors, MixtureCard(**{**card.model_dump(exclude={"kind"}), "settings": noted}))
    return found
