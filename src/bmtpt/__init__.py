"""Bayesian Multi-Task Prompt Tuning: a posterior over soft prompts as the prior for the next task.

    backbone = bmtpt.Backbone.from_pretrained("offline")
    task = bmtpt.Task(rows=table, text="ticket: {body}", label="team")
    posterior = bmtpt.learn(backbone, [bmtpt.task("sst2"), bmtpt.task("mrpc")])
    prompt = posterior.adapt(task, shots=32)
    prompt.predict(["first text", {"body": "second"}])
    prompt.save("tickets")

The names below are the public API. They are imported on first use, so that `bmtpt --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmtpt.api.posterior import Posterior, learn
    from bmtpt.api.prompt import Prompt
    from bmtpt.api.task import Task, task
    from bmtpt.backbone import Backbone
    from bmtpt.errors import BmtptError
    from bmtpt.inference.evaluation import Evaluation
    from bmtpt.serve.client import AsyncClient, Client
    from bmtpt.settings import AdaptSettings, LearnSettings
    from bmtpt.tasks import TaskData

_HOME = {
    "AdaptSettings": "bmtpt.settings",
    "AsyncClient": "bmtpt.serve.client",
    "Backbone": "bmtpt.backbone",
    "BmtptError": "bmtpt.errors",
    "Client": "bmtpt.serve.client",
    "Evaluation": "bmtpt.inference.evaluation",
    "LearnSettings": "bmtpt.settings",
    "Posterior": "bmtpt.api.posterior",
    "Prompt": "bmtpt.api.prompt",
    "Task": "bmtpt.api.task",
    "TaskData": "bmtpt.tasks",
    "learn": "bmtpt.api.posterior",
    "task": "bmtpt.api.task",
}

__all__ = [
    "AdaptSettings",
    "AsyncClient",
    "Backbone",
    "BmtptError",
    "Client",
    "Evaluation",
    "LearnSettings",
    "Posterior",
    "Prompt",
    "Task",
    "TaskData",
    "learn",
    "task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bmtpt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
