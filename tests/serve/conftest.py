"""Trained prompts of all tiny tasks, and the service that answers with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from bmtpt.artifacts.saved import Prompt
from bmtpt.serve.app import create_app
from bmtpt.serve.service import Service
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


@pytest.fixture(scope="session")
def service(tiny_backbone, prompts) -> Iterator[Service]:
    service = Service.of(tiny_backbone, prompts)
    yield service
    service.batcher.drain()


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an application at a free port of this machine and give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def url(service) -> Iterator[str]:
    """Where a server with the tiny prompts answers."""
    with listening(create_app(service)) as address:
        yield address
