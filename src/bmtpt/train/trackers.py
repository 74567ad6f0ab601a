"""Send a run's losses, diagnostics, scores and settings to TensorBoard, trackio, Weights & Biases or MLflow.

Each is called directly. `accelerate.tracking` has the four behind one interface, but needs a `PartialState`, which on
rank 0 alone would join torch.distributed from torchrun's environment, and it continues no run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import SettingsError, nearest
from bmtpt.train.events import Listener
from bmtpt.types import TrackerName

log = logging.getLogger("bmtpt")

PROJECT = "bmtpt"
NAME_FILE = "tracked.txt"
"""The file in a run's folder that keeps the name it has in the tracker, for a run that is resumed."""


class Run(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        name: The same when the run is resumed.
        folder: Where a tracker that writes files by default writes them; None leaves that to the tracker.
        settings: The run's configuration, JSON-able.
        step: Steps done before the first figures that are to come.
    """

    name: str
    folder: Path | None
    settings: Mapping[str, Any]
    step: int


class Opened(NamedTuple):
    """A tracker that has been told of a run: `log(figures, step)` and `close(failed)`."""

    log: Callable[[dict[str, float], int], object]
    close: Callable[[bool], object]


def _tensorboard(run: Run) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    # What an earlier try has logged from this step on is hidden.
    writer = SummaryWriter(run.folder and str(run.folder / "tensorboard"), purge_step=run.step)
    writer.add_text("settings", "\n".join(f"- {key}: {value}" for key, value in run.settings.items()), run.step)

    def add(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return Opened(add, lambda _: writer.close())


def _wandb(run: Run) -> Opened:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    opened = wandb.init(
        project=project, id=run.name, resume="allow", dir=run.folder, config={**run.settings}, reinit="create_new"
    )
    return Opened(lambda figures, step: opened.log(figures, step=step), lambda failed: opened.finish(int(failed)))


def _trackio(run: Run) -> Opened:
    import trackio

    opened = trackio.init(project=PROJECT, name=run.name, resume="allow", config={**run.settings})
    return Opened(lambda figures, step: opened.log(figures, step=step), lambda _: opened.finish())


def _mlflow(run: Run) -> Opened:
    from mlflow import MlflowClient

    client = MlflowClient()
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(project)
    experiment = found.experiment_id if found else client.create_experiment(project)
    earlier = client.search_runs([experiment], f"tags.mlflow.runName = '{run.name}'", max_results=1)
    if earlier:
        number = earlier[0].info.run_id
        client.update_run(number, status="RUNNING")
    else:
        number = client.create_run(experiment, run_name=run.name).info.run_id
        for key, value in run.settings.items():
            client.log_param(number, key, str(value)[:500])

    def add(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            client.log_metric(number, name, value, step=step)

    return Opened(add, lambda failed: client.set_terminated(number, "FAILED" if failed else "FINISHED"))


_OPEN: dict[TrackerName, Callable[[Run], Opened]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def require_tracker(name: TrackerName | None) -> None:
    """Raise a SettingsError if there is no such tracker or its package is missing; None needs none."""
    if name is None:
        return
    if name not in _OPEN:
        raise SettingsError(f"track cannot be {name!r}; {nearest(str(name), _OPEN)}")
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, such as wandb makes, is no package
        raise SettingsError(f"track '{name}' needs the {name} package; run: pip install 'bmtpt[{name}]'")


def figures_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an event by name, the mean where there is one for each prompt.

    >>> figures_of({"event": "step", "step": 3, "steps": 9, "loss": {"rte": [1.0, 2.0]}, "lr": 0.5})
    {'step/loss/rte': 1.5, 'step/lr': 0.5}
    """
    found: dict[str, float] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                collect(f"{name}/{key}", inner)
        elif isinstance(value, list) and value and all(isinstance(each, (int, float)) for each in value):
            found[name] = sum(value) / len(value)
        elif isinstance(value, (int, float)):
            found[name] = float(value)

    kind = event["event"]
    for key, value in event.items():
        if key not in ("step", "steps", "particle_nll", "candidate_scores"):  # the last two are there in other words
            collect(kind if key == kind else f"{kind}/{key}", value)  # diagnostics are in a mapping of their own
    return found


@dataclass
class _Tracking:
    """Hands events to a tracker, which is opened at the first one: only rank 0 hears of any.

    Attributes:
        before: Steps of the part of the run that has ended: the prompt that particles start around.
    """

    tracker: TrackerName
    folder: Path | None
    settings: Mapping[str, Any]
    resume: bool
    before: int = 0
    opened: Opened | None = None
    broken: bool = False

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "end":
            self.before += event["step"]
            return
        done = self.before + event["step"] + 1
        if self.opened is None:
            self.opened = self._open(done)
        if (figures := figures_of(event)) and not self.broken:
            self._trying(lambda opened: opened.log(figures, done))

    def _open(self, step: int) -> Opened:
        run = Run(self._name(), self.folder, self.settings, step)
        try:
            with redirect_stdout(sys.stderr):  # some greet there
                return _OPEN[self.tracker](run)
        except Exception as error:  # of any kind: its server, its account, its files
            raise SettingsError(f"track '{self.tracker}' cannot begin: {_first_line(error)}") from error

    def _name(self) -> str:
        path = self.folder and self.folder / NAME_FILE
        if path and self.resume and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", self.folder.resolve().name if self.folder else "run")
        name = f"{word}-{secrets.token_hex(4)}"
        if path:
            write_text_atomically(path, name + "\n")
        return name

    def _trying(self, work: Callable[[Opened], object]) -> None:
        """Do something with the tracker; a run does not end because its tracker does."""
        assert self.opened is not None
        try:
            with redirect_stdout(sys.stderr):
                work(self.opened)
        except Exception as error:
            self.broken = True
            log.warning("track '%s' stopped: %s; the run goes on without it", self.tracker, _first_line(error))

    def close(self, failed: bool) -> None:
        if self.opened:
            self._trying(lambda opened: opened.close(failed))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def tracked(
    tracker: TrackerName | None,
    listener: Listener | None,
    settings: Mapping[str, Any],
    *,
    folder: Path | None = None,
    resume: bool = False,
) -> Iterator[Listener | None]:
    """Yield a listener that hands every event on, and its numbers to a tracker; None adds no tracker.

    Args:
        settings: The run's configuration, JSON-able.
        folder: Of the run. It keeps the name of the run in the tracker, and TensorBoard's files.
        resume: Whether to go on with the run of that name.

    Raises:
        SettingsError: As `require_tracker`; at the first event, if the tracker cannot begin.
    """
    require_tracker(tracker)
    if tracker is None:
        yield listener
        return
    tracking = _Tracking(tracker, folder, settings, resume)

    def heard(event: dict[str, Any]) -> None:
        if listener:
            listener(event)
        tracking(event)

    failed = True
    try:
        yield heard
        failed = False
    finally:
        tracking.close(failed)
