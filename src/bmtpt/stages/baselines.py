"""The source stage that only one method has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.methods.registry import Method, SourceSetup
from bmtpt.settings import LearnSettings
from bmtpt.stages.rows import row_digests, source_rows
from bmtpt.stages.source import initial_particles
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.run import Run


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
