"""A rich progress bar that listens to training events."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as Bar
from rich.table import Column
from rich.text import Text

TASKS_SHOWN = 4


class FactsColumn(ProgressColumn):
    """Losses and diagnostics; the only column that gives way on a narrow terminal."""

    def render(self, task: Bar) -> Text:
        return Text(task.fields["losses"] + task.fields["facts"], style="dim", no_wrap=True, overflow="ellipsis")


class TrainingProgress:
    """Shows the running stage, its steps, the loss per task and the particles' diagnostics."""

    def __init__(self, console: Console, stage: str = "") -> None:
        self.stage = stage
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            FactsColumn(),
            console=console,
        )
        self.bar: TaskID | None = None
        self.shown = ""

    def __enter__(self) -> Self:
        return self  # the display starts with the first event, so a run that is refused leaves no empty line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if "steps" not in event:
            return
        bar = self._bar(event)
        if event["event"] == "step":
            self.progress.update(bar, completed=event["step"] + 1, losses=_losses(event["loss"]))
        elif event["event"] == "diagnostics":
            self.progress.update(bar, facts=_facts(event["diagnostics"]))
        elif event["event"] == "end":
            self.progress.update(bar, total=event["step"], completed=event["step"])
        elif event["event"] == "jobs":
            self.progress.update(bar, completed=event["step"], losses=event["name"])

    def _bar(self, event: dict[str, Any]) -> TaskID:
        """Return the bar of the event's stage; a new stage gets a new bar, and of old ones only the last stays."""
        stage = event.get("stage", self.stage)
        if self.bar is None or stage != self.shown:
            if self.bar is None:
                self.progress.start()
            else:
                self.progress.remove_task(self.bar)
            self.bar = self.progress.add_task(stage, total=event["steps"], losses="", facts="")
            self.shown = stage
        return self.bar


def _losses(losses: dict[str, list[float]]) -> str:
    means = [f"{name} {sum(values) / len(values):.2f}" for name, values in losses.items()]
    more = f" +{len(means) - TASKS_SHOWN}" if len(means) > TASKS_SHOWN else ""
    return "loss " + " ".join(means[:TASKS_SHOWN]) + more


def _facts(facts: dict[str, Any]) -> str:
    ratio = facts["repulsion_to_drive"]
    return f"  spread {facts['spread']:.2g}" + ("" if ratio is None else f" repulsion/drive {ratio:.1e}")
