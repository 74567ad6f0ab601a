"""Learn a posterior from source tasks, and adapt it to targets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor

from bmtpt.api.given import Artifact, as_backbone, as_run_folder, as_settings
from bmtpt.api.prompt import Prompt
from bmtpt.api.task import AnyTask, Task, as_data
from bmtpt.artifacts import saved as artifacts
from bmtpt.artifacts.card import PosteriorCard
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError, described
from bmtpt.inference.rows import examples_of
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages import source as source_stage
from bmtpt.stages import target as target_stage
from bmtpt.stages.readout_prior import with_readout_prior
from bmtpt.tasks import TaskData, TaskSpec
from bmtpt.train.events import Listener
from bmtpt.train.trackers import require_tracker, tracked
from bmtpt.types import TrackerName

Progress = bool | Listener | None
Settings = AdaptSettings | Mapping[str, Any] | None
ONE_TASK = (Task, TaskData, TaskSpec, str, Path)


def learn(
    backbone: Backbone | str | Path,
    tasks: Sequence[AnyTask] | AnyTask,
    settings: LearnSettings | Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
    track: TrackerName | None = None,
    **options: Any,
) -> Posterior:
    """Learn a posterior over soft prompts from source tasks.

    Args:
        backbone: A `Backbone`, or the name of one.
        tasks: Source tasks: `Task` objects, or names of built-in tasks or task files.
        settings: Settings of the source stage; single ones may be given as keywords: `learn(b, tasks, steps=200)`.
        folder: Where checkpoints, events and the posterior are written. None writes nothing.
        resume: Continue the unfinished run in the folder.
        overwrite: Replace the run in the folder.
        progress: True or False shows or hides a progress bar; a function is called with every event.
        track: Also log losses, diagnostics, scores and settings to "tensorboard", "trackio", "wandb" or "mlflow".

    Raises:
        BmtptError: Something is wrong that you can change; one sentence says what.
        TypeError: An argument is of the wrong kind.
    """
    chosen = as_settings(LearnSettings, settings, options)
    place = as_run_folder(folder, resume, overwrite)
    require_tracker(track)
    model = as_backbone(backbone)
    sources = [as_data(each, model) for each in _several(tasks)]
    config = _config(model, sources, chosen)
    with (
        _listening(progress, "learn") as shown,
        tracked(track, shown, config, folder=place, resume=resume) as listener,
    ):
        found = source_stage.learn(
            model, sources, chosen, folder=place, resume=resume, overwrite=overwrite, listener=listener
        )
    return Posterior(found, model)


class Posterior(Artifact[artifacts.Posterior]):
    """A posterior over soft prompts, learned from source tasks; `adapt` makes a prompt for a new task from it."""

    _kind = artifacts.Posterior
    _wanted = "a posterior comes from bmtpt.learn or Posterior.load"

    @property
    def particles(self) -> Float[Tensor, "M P D"]:
        """The M particles: soft prompts in fp32."""
        return self._saved.particles

    @property
    def mean(self) -> Float[Tensor, "P D"]:
        """θ̄, the mean over particles."""
        return self._saved.mean

    @property
    def card(self) -> PosteriorCard:
        """Where the posterior comes from: backbone, sources, settings, diagnostics."""
        return self._saved.card

    @overload
    def adapt(self, task: AnyTask, settings: Settings = None, **options: Any) -> Prompt: ...

    @overload
    def adapt(self, task: Sequence[AnyTask], settings: Settings = None, **options: Any) -> dict[str, Prompt]: ...

    def adapt(
        self,
        task: Any,
        settings: Settings = None,
        *,
        unlabelled: Any = None,
        folder: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: Progress = None,
        track: TrackerName | None = None,
        **options: Any,
    ) -> Prompt | dict[str, Prompt]:
        """Adapt the posterior to a target task by MAP, or to several that are trained together and share A.

        Args:
            task: A target task, or a list of them.
            settings: Settings of the target stage; single ones may be given as keywords: `adapt(task, shots=32)`.
            unlabelled: Texts or rows of one task without labels, as `Prompt.predict` takes them; at most 256 of them
                help its `readout`.
            folder, resume, overwrite, progress, track: As for `learn`; several tasks get a folder each inside.

        Returns:
            The task's prompt; for a list, prompts by task name.

        Raises:
            BmtptError, TypeError: As `learn`.
        """
        chosen = as_settings(AdaptSettings, settings, options)
        place = as_run_folder(folder, resume, overwrite)
        require_tracker(track)
        targets = [as_data(each, self.backbone) for each in _several(task)]
        if unlabelled is not None:
            if len(targets) > 1:
                raise SettingsError("unlabelled texts belong to one task, and several are given; adapt it alone")
            targets = [replace(targets[0], unlabelled=tuple(examples_of(unlabelled, targets[0].task)))]
        config = _config(self.backbone, targets, chosen)
        with (
            _listening(progress, "adapt") as shown,
            tracked(track, shown, config, folder=place, resume=resume) as listener,
        ):
            found = target_stage.adapt_together(
                self._saved, targets, chosen,
                backbone=self.backbone, folder=place, resume=resume, overwrite=overwrite, listener=listener,
            )  # fmt: skip
        prompts = {data.task.name: Prompt(found[data.task.name], self.backbone, data) for data in targets}
        return next(iter(prompts.values())) if isinstance(task, ONE_TASK) else prompts

    def with_readout_prior(self, tasks: Sequence[AnyTask] | AnyTask) -> Posterior:
        """Return the posterior with widths of the readout's prior that are chosen on held-back rows of source tasks.

        They are noted in the card, for `adapt(task, readout="linear", readout_prior="posterior")`; nothing is trained.
        `learn(..., readout_prior="sources")` does the same at its end.

        Args:
            tasks: Tasks like those to come, with label words. The posterior's sources have taught the prompt their
                words, so that their readouts have less to correct than those of a new task.

        Raises:
            BmtptError, TypeError: As `learn`.
        """
        sources = [as_data(each, self.backbone) for each in _several(tasks)]
        return Posterior(with_readout_prior(self.backbone, self._saved, sources), self.backbone)

    def __repr__(self) -> str:
        M, P, D = self.particles.shape
        sources = ", ".join(self.card.sources)
        rms = torch.linalg.vector_norm(self.mean) / (P * D) ** 0.5
        return (
            f"Posterior({M} particles of {P} × {D} from {sources}; backbone {self.card.backbone.name!r}; "
            f"rms of the mean {rms:.2f})"
        )


def _several(tasks: Any) -> Sequence[Any]:
    return tasks if isinstance(tasks, Sequence) and not isinstance(tasks, ONE_TASK) else [tasks]


def _config(backbone: Backbone, tasks: Sequence[TaskData], settings: BaseModel) -> dict[str, Any]:
    """Return what a tracker shows as a run's configuration."""
    return {"backbone": backbone.name, "tasks": [data.task.name for data in tasks], **settings.model_dump(mode="json")}


@contextmanager
def _listening(progress: Progress, stage: str) -> Iterator[Listener | None]:
    """Give the listener of a run: the caller's own function, a bar, or none; None is a bar where a person looks on."""
    if callable(progress):
        yield progress
        return
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False, None or a function of one event, not {described(progress)}")
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=stage, unit="step") as bar:

        def show(event: dict[str, Any]) -> None:
            if event["event"] != "step":
                return
            if bar.total != event.get("steps"):  # another run begins: the prompt that particles start around
                bar.reset(total=event.get("steps"))
            values = [value for losses in event["loss"].values() for value in losses]
            bar.set_postfix(loss=f"{sum(values) / len(values):.3f}", refresh=False)
            bar.update(event["step"] + 1 - bar.n)

        yield show
