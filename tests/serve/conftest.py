"""Trained prompts of all tiny tasks, and the service that answers with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import pytest
from fastapi import FastAPI

from bmtpt.artifacts.saved import Prompt
from bmtpt.inference.predict import predict
from bmtpt.inference.rows import as_example
from bmtpt.serve.app import create_app
from bmtpt.serve.service import Service
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks import saved_task
from local import listening

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


@pytest.fixture(scope="session")
def service(tiny_backbone, prompts) -> Iterator[Service]:
    """A service for tests that ask and change nothing; it must outlive them, so no server may shut it down."""
    service = Service.of(tiny_backbone, prompts)
    yield service
    service.batcher.drain()


@pytest.fixture
def own_service(tiny_backbone, prompts) -> Iterator[Service]:
    """A service of a test's own."""
    service = Service.of(tiny_backbone, prompts)
    yield service
    service.batcher.drain()


@pytest.fixture(scope="session")
def url(tiny_backbone, prompts) -> Iterator[str]:
    """Where a server with the tiny prompts answers; tests ask it and change nothing."""
    with listening(create_app(Service.of(tiny_backbone, prompts))) as address:
        yield address


@pytest.fixture(scope="session")
def listen() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Serves an application of a test's own."""
    return listening


@pytest.fixture(scope="session")
def offline(tiny_backbone, prompts) -> Callable[[str, Mapping[str, str] | str], dict[str, float]]:
    """What `predict` gives the labels of a row, without a server."""

    def probabilities(name: str, row: Mapping[str, str] | str) -> dict[str, float]:
        example = as_example(row, "", saved_task(prompts[name].card.task_definition))
        return next(predict(tiny_backbone, prompts[name], [example]))["all"]

    return probabilities
