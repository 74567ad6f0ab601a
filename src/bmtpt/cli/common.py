"""What several commands share: consoles, the options of a run, and showing or saving resolved settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

if TYPE_CHECKING:
    from bmtpt.tasks import TaskData

OUT = Console()
ERR = Console(stderr=True)
SETTINGS_FILE = "settings.yaml"

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of options; the command line wins.")]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print every resolved setting and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, to the same bits.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]


def as_yaml(settings: BaseModel) -> str:
    """Return settings as YAML that `--config` reads back."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save_settings(folder: Path, settings: BaseModel) -> None:
    """Write the resolved settings beside the result."""
    from bmtpt.files import write_text_atomically

    write_text_atomically(folder / SETTINGS_FILE, as_yaml(settings))


def load_tasks(names: Sequence[str], data: str) -> list[TaskData]:
    """Load the rows of several tasks."""
    from bmtpt.tasks import load_data, load_task

    return [load_data(load_task(name), data) for name in names]


def part(settings: BaseModel, kind: type[BaseModel]) -> Any:
    """Return the fields that belong to a base class of the settings."""
    return kind(**{name: getattr(settings, name) for name in kind.model_fields})
