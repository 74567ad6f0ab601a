"""What several commands share: printing, the options of a run, its folder, and its resolved settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from bmtpt.backbone.execution import EngineName, Execution, Memory, Precision

if TYPE_CHECKING:
    from bmtpt.backbone import Backbone
    from bmtpt.tasks import TaskData
    from bmtpt.train.events import Listener

OUT = Console()
ERR = Console(stderr=True)
SETTINGS_FILE = "settings.yaml"


def say(text: str) -> None:
    """Print a line for the user, never folded: commands and paths in it are there to be copied."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print what the user should know on standard error, which keeps standard output clean for JSON lines."""
    ERR.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what goes on without steps to count: a spinner on a terminal, a line elsewhere."""
    if ERR.is_terminal:
        with ERR.status(what):
            yield
    else:
        ERR.print(what, markup=False, highlight=False, soft_wrap=True)
        yield


class LogLines(logging.Handler):
    """Prints what the library logs (which engine runs, and why) on standard error, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record unless the same was printed before."""
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            ERR.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def show_log() -> None:
    """Have the library's log lines printed."""
    log = logging.getLogger("bmtpt")
    log.setLevel(logging.INFO)
    log.addHandler(LogLines())


def note_cut(count: int, rows: int | None = None) -> None:
    """Say how many texts were cut, if any were."""
    if count:
        share = f"{count:,} of {rows:,}" if rows else f"{count:,}"
        note(f"texts too long and cut: {share} (see --max-length of learn and adapt, or the task's max_length)")


def _defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Let a YAML file supply a command's options; what the command line says wins."""
    if path:
        options = context.command.params
        values = checked_options(path, [option.name or "" for option in options])
        lists = [option.name for option in options if getattr(option, "multiple", False)]
        context.default_map = {
            key: [value] if key in lists and isinstance(value, str) else value for key, value in values.items()
        }
    return path


def checked_options(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read options from YAML.

    Raises:
        SettingsError: The file is wrong or names an option that is not known.
    """
    from bmtpt.errors import SettingsError, nearest
    from bmtpt.settings import read_yaml

    values = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items()}
    names = [name for name in known if name not in ("config", "help")]
    for key in values:
        if key not in names:
            raise SettingsError(f"{path}: unknown option '{key}'; {nearest(key, names)}")
    return {key: _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    """Values go through the command line's own conversion, which wants text."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, bool) else str(value)


Config = Annotated[Path | None, typer.Option("--config", help="YAML file of options; the command line wins.")]
Defaults = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_defaults, help="YAML file of options; the command line wins."),
]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print every resolved setting and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, to the same bits.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]


def as_yaml(settings: BaseModel) -> str:
    """Return settings as YAML that `--config` reads back."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save_settings(folder: Path, settings: BaseModel) -> None:
    """Write the resolved settings beside the result."""
    from bmtpt.artifacts.files import write_text_atomically

    write_text_atomically(folder / SETTINGS_FILE, as_yaml(settings))


def saving_settings(folder: Path, settings: BaseModel, listener: Listener) -> Listener:
    """Save the settings at the first event: a run that is refused before it starts changes nothing."""
    started: list[bool] = []

    def heard(event: dict[str, Any]) -> None:
        if not started:
            save_settings(folder, settings)
            started.append(True)
        listener(event)

    return heard


def load_tasks(names: Sequence[str], data: str) -> list[TaskData]:
    """Load the rows of several tasks."""
    from bmtpt.tasks import load_data, load_task

    return [load_data(load_task(name), data) for name in names]


DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, packed or generic.")]
MemoryOption = Annotated[str, typer.Option("--memory", help="keep or recompute.")]


class ExecutionOptions(BaseModel):
    """Options of commands that train: how the backbone runs.

    Attributes:
        device: `auto` (cuda if there is one, else cpu), cpu, cuda or cuda:N.
        precision: Compute dtype of the frozen model; prompts and losses are fp32 in any case.
        engine: `packed` (fast: T5, and decoder-only models with full attention), `generic` (Hugging Face's own
            forward), or `auto`: packed where it is the faster one.
        memory: `keep` what the backward pass needs, or `recompute` it from each layer's input: less memory, more time,
            the same gradient; T5's packed engine only.
    """

    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "auto"
    memory: Memory = "keep"

    @property
    def execution(self) -> Execution:
        """What `Backbone.from_pretrained` takes."""
        return Execution(self.device, self.precision, self.engine, self.memory)


def load_backbone(name: str, execution: Execution) -> Backbone:
    """Load a model, saying so while it takes its time."""
    from bmtpt.backbone import Backbone

    execution.checked()
    with doing(f"loading {name}"):
        return Backbone.from_pretrained(name, **execution._asdict())


def part(settings: BaseModel, kind: type[BaseModel]) -> Any:
    """Return the fields that belong to a base class of the settings."""
    return kind(**{name: getattr(settings, name) for name in kind.model_fields})
