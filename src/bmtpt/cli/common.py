"""What several commands do: load a model or tasks, listen to a run, and save its settings next to the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bmtpt.cli.console import ERR, OUT, doing
from bmtpt.errors import DataError, SettingsError

if TYPE_CHECKING:
    from bmtpt.backbone import Backbone
    from bmtpt.backbone.execution import Execution
    from bmtpt.tasks import TaskData
    from bmtpt.train.events import Listener

SETTINGS_FILE = "settings.yaml"


def as_yaml(settings: BaseModel) -> str:
    """Return settings as YAML that `--config` reads back."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def print_settings(settings: BaseModel) -> None:
    """Print settings as YAML that `--config` reads back."""
    OUT.print(as_yaml(settings), markup=False, highlight=False, end="")


@contextmanager
def listening(stage: str, settings: Any, resume: bool) -> Iterator[Listener | None]:
    """Yield the listener of a run: it shows how the run goes, saves its settings and feeds its tracker."""
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.train.trackers import tracked

    with TrainingProgress(ERR, stage) as progress:
        saving = _saving_settings(settings.out, settings, progress)
        config = settings.model_dump(mode="json")
        with tracked(settings.track, saving, config, folder=settings.out, resume=resume) as listener:
            yield listener


def _saving_settings(folder: Path, settings: BaseModel, listener: Listener) -> Listener:
    """Save the settings at the first event: a run that is refused before it starts changes nothing."""
    from bmtpt.artifacts.files import write_text_atomically

    started: list[bool] = []

    def heard(event: dict[str, Any]) -> None:
        if not started:
            write_text_atomically(folder / SETTINGS_FILE, as_yaml(settings))
            started.append(True)
        listener(event)

    return heard


def load_tasks(names: Sequence[str], data: str) -> list[TaskData]:
    """Load the rows of several tasks."""
    from bmtpt.tasks import load_data, load_task

    return [load_data(load_task(name), data) for name in names]


def with_unlabelled(targets: Sequence[TaskData], path: Path) -> list[TaskData]:
    """Return the one target with the texts of a file beside its rows.

    Raises:
        SettingsError: There are several targets.
        DataError: The file or one of its rows cannot be read.
    """
    from bmtpt.inference.rows import file_rows

    if len(targets) > 1:
        raise SettingsError("--unlabelled belongs to one target, and several are given; adapt it alone")
    (target,) = targets
    texts = []
    for row in file_rows(path, {target.task.name: target.task}):
        if isinstance(row.example, DataError):
            raise row.example
        texts.append(row.example)
    return [replace(target, unlabelled=tuple(texts))]


def load_backbone(name: str, execution: Execution) -> Backbone:
    """Load a model and say so while it loads."""
    from bmtpt.backbone import Backbone

    execution.checked()
    with doing(f"loading {name}"):
        return Backbone.from_pretrained(name, **execution._asdict())


def part(settings: BaseModel, kind: type[BaseModel]) -> Any:
    """Return the fields that belong to a base class of the settings."""
    return kind(**{name: getattr(settings, name) for name in kind.model_fields})
