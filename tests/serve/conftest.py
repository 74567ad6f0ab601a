"""Trained prompts of all tiny tasks, and the service that answers with them."""

from __future__ import annotations

import pytest

from bmtpt.artifacts.saved import Prompt
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt

QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2}


@pytest.fixture(scope="session")
def prompts(tiny_backbone, tiny_tasks) -> dict[str, Prompt]:
    """A prompt for each tiny task, and an ensemble of two for `sentiment`."""
    learned = LearnSettings(particles=2, prompt_length=3, validation_rows=2, **QUICK)
    posterior = learn(tiny_backbone, [tiny_tasks["sentiment"]], learned)

    def trained(name: str, **changes: object) -> Prompt:
        settings = AdaptSettings.model_validate({**QUICK, "prior": "none", **changes})
        return adapt(posterior, tiny_tasks[name], settings, backbone=tiny_backbone)

    found = {name: trained(name) for name in ("sentiment", "pairs", "answers")}
    return found | {"ensemble": trained("sentiment", ensemble=True)}
