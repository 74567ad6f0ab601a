"""Run any registered method: its own source stage, if it has one, and its target stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.saved import Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.methods.registry import Learned, Method, Setup, SourceSetup
from bmtpt.methods.weights import TunedModel
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.rows import row_digests, source_rows
from bmtpt.stages.source import initial_particles
from bmtpt.stages.target import all_target_rows, train_targets
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.run import Run

Trained = Prompt | PromptMixture | TunedModel


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
        settings: Of the source stage, as for `learn`; one prompt is trained, from one vocabulary draw.
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
    train, held_back = source_rows(backbone, sources, settings)
    (start,) = initial_particles(backbone, settings, None)
    stage = method.own_source.stage(SourceSetup(backbone, train, held_back, settings, options, prompts, start))
    identity = {
        "method": method.name,
        "rows": row_digests(train),
        "held_back": row_digests(held_back),
        "options": options.model_dump(mode="json"),
        "prompts": [sha256(prompt.cpu().numpy().tobytes()).hexdigest() for prompt in prompts.values()],
    }
    outcome = Run(backbone.identity, folder, True, listener).train(stage, settings, identity)
    return {name: tensor.detach() for name, tensor in method.own_source.result(outcome.tensors).items()}


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
    listener: Listener | None = None,
) -> dict[str, Trained]:
    """Train any method on one target, or on several together; return what predicts each.

    Args:
        settings: Of the target stage; each method uses those that apply to it.
        options: The method's own; None for its defaults.
        learned: What the source stages that the method needs have learned.
        budget: Starts or priors that may compete.
        prompt_length: P of prompts that start without a source.
        listener: Hears every event.

    Raises:
        BackboneError: The method cannot run on this model.
        SettingsError, DataError, TrainingError: As `fit_targets`.
    """
    options = method.options() if options is None else options
    method.require_runs_on(backbone.name, backbone.model.config)
    settings = method.adjusted(settings or AdaptSettings(), options)
    learned = learned or Learned()
    rows = all_target_rows(backbone, targets, settings)
    stage = method.build(Setup(backbone, rows, settings, options, budget, prompt_length, learned))
    trained = train_targets(
        backbone,
        targets,
        stage,
        Run(backbone.identity, None, False, listener),
        method=method.name,
        sources=() if method.needs == "nothing" else learned.sources,
        posterior=learned.posterior.weights_sha256 if learned.posterior else None,
    )
    noted = {"options": options.model_dump(mode="json")} if method.options.model_fields else {}
    found = {}
    for k, (name, card) in enumerate(trained.cards.items()):
        card = card.model_copy(update={"settings": card.settings | noted})
        found[name] = stage.result(trained.tensors, k, trained.winners, card)
    return found
