"""Where a training run lives: its folder, its identity, whether it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtpt.settings import LoopSettings
from bmtpt.train.events import Listener
from bmtpt.train.loop import Loop, Method, Outcome


@dataclass(frozen=True)
class Run:
    """Where and how a stage runs.

    Attributes:
        backbone: What decides the bits that a model computes: a checkpoint is never resumed on another one.
        folder: For checkpoints and events, or None.
        resume: Whether to go on from the folder's checkpoint.
        listener: Hears every event.
    """

    backbone: Mapping[str, str]
    folder: Path | None
    resume: bool
    listener: Listener | None

    def train(
        self, method: Method, settings: LoopSettings, tasks: Mapping[str, Any], patience: int | None = None
    ) -> Outcome:
        """Run a method in the one training loop."""
        identity = {**tasks, "backbone": dict(self.backbone)}
        loop = Loop(
            method,
            settings,
            folder=self.folder,
            identity=identity,
            patience=patience,
            listener=self.listener,
        )
        return loop.run(resume=self.resume)
