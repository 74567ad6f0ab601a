"""Where a training run lives: its folder, its identity, whether it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmtpt.errors import ArtifactError
from bmtpt.settings import LoopSettings
from bmtpt.train.events import Listener
from bmtpt.train.loop import CHECKPOINT, Loop, Method, Outcome


@dataclass(frozen=True)
class Run:
    """Where and how a stage runs.

    Attributes:
        fingerprint: Of the backbone: a checkpoint is never resumed on another model.
        folder: For checkpoints and events, or None.
        resume: Whether to go on from the folder's checkpoint.
        listener: Hears every event.
    """

    fingerprint: str
    folder: Path | None
    resume: bool
    listener: Listener | None

    def train(
        self, method: Method, settings: LoopSettings, tasks: Mapping[str, Any], patience: int | None = None
    ) -> Outcome:
        """Run a method in the one training loop."""
        identity = {**tasks, "backbone": self.fingerprint}
        loop = Loop(
            method,
            settings,
            folder=self.folder,
            identity=identity,
            patience=patience,
            listener=self.listener,
        )
        return loop.run(resume=self.resume)


def prepare_folder(
    folder: Path | None, *, resume: bool, overwrite: bool, kind: Literal["posterior", "prompt"] | None = None
) -> None:
    """Make a run's folder, and refuse one that `require_free` refuses.

    Raises:
        ArtifactError: As `require_free`; or the folder cannot be made.
    """
    if folder is None:
        return
    require_free(folder, resume=resume, overwrite=overwrite, kind=kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite and not resume:
            (folder / CHECKPOINT).unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot use {folder}: {error.strerror}; choose another folder") from error


def require_free(
    folder: Path | None, *, resume: bool, overwrite: bool, kind: Literal["posterior", "prompt"] | None = None
) -> None:
    """Refuse a folder that holds another run.

    Args:
        kind: What the run will save; a folder with another kind is refused now, not when the training is over.

    Raises:
        ArtifactError: As said.
    """
    if folder is None:
        return
    for other in sorted({"posterior", "prompt", "mixture"} - {kind}) if kind else ():
        if (folder / f"{other}.safetensors").exists():
            raise ArtifactError(f"{folder} holds a {other} and not a {kind}; choose another folder")
    taken = [name for name in ("card.json", CHECKPOINT) if (folder / name).exists()]
    if taken and not resume and not overwrite:
        raise ArtifactError(
            f"{folder} holds a run already ({taken[0]}); add --resume or --overwrite, or choose another"
        )
