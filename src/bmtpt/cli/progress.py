"""Show how a run goes: a live bar and curves on a terminal, plain lines where the output is piped or kept in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as Bar
from rich.table import Column
from rich.text import Text

from bmtpt.cli.sparklines import Curves
from bmtpt.sealed import line_values

TASKS_SHOWN = 4
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 1.0
RECENT_SECONDS = 20.0
"""A source stage whose last step is older is not shown: it has ended, or the machine is busy with something else."""

JOBS = "jobs"


class Expected(NamedTuple):
    """What a study should take by a speed that was measured beforehand.

    Attributes:
        seconds: The whole study.
        per_step: One step of its source stage; a slower one makes the rest longer in proportion.
    """

    seconds: float
    per_step: float


class News(NamedTuple):
    """What is told of a run next to its steps.

    Attributes:
        before: Words before the losses.
        after: Words after them.
        losses: The last mean loss of each task, if it is told.
        of: Whose losses these are: one curve shows those of one run.
        step: The step that they belong to.
    """

    before: str
    after: str = ""
    losses: Mapping[str, float] = {}
    of: str = ""
    step: int = -1


class TrainingProgress:
    """Listen to training events and show the stage, its steps, the loss per task and the time left.

    Args:
        console: Where to print. On a terminal one bar is redrawn, and the curve of each task's loss under it; elsewhere
            a line is printed every ten seconds, when a stage ends and when a job of a study ends.
        stage: Name of the stage, for events that carry none.
        folder: Of a study: its other processes are followed through the event logs that they write there.
        expected: What a study should take, if its speed was measured; otherwise its finished jobs tell.
    """

    def __init__(
        self, console: Console, stage: str = "", *, folder: Path | None = None, expected: Expected | None = None
    ) -> None:
        self.stage = stage
        self._display: _Display = _Bars(console) if console.is_interactive else _Lines(console)
        self._folder, self._expected, self._slower = folder, expected, 1.0
        self._jobs: tuple[int, int] | None = None
        self._shown: str | None = None
        self._began, self._first = time.monotonic(), 0
        self._diagnostics = ""
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        if self._folder:
            self._follower.start()
        return self  # the display starts with the first event, so a run that is refused leaves no empty line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._folder:
            self._follower.join()
        self._display.close()

    def __call__(self, event: dict[str, Any]) -> None:
        if "steps" not in event:
            return
        stage, step, steps, kind = event.get("stage", self.stage), event["step"], event["steps"], event["event"]
        if kind == "validating":  # the first one comes before the first step, and no time is to be told from it
            self._display.show(stage, step + 1, steps, News("validating", of=stage), now=step + 1 == steps)
            return
        if stage != self._shown:
            # A resumed stage does not begin with step 0, so the time left counts from its first step.
            self._shown, self._began, self._first, self._diagnostics = stage, time.monotonic(), step + 1, ""
        if kind == "step":
            self._show(stage, step + 1, steps, News("", self._diagnostics, means(event["loss"]), stage, step))
        elif kind == "diagnostics":
            self._diagnostics = _diagnostics(event["diagnostics"])
        elif kind == "end":
            self._display.show(stage, step, step, News(f"finished in {duration(event['seconds'])}", of=stage), now=True)
        elif kind == JOBS:
            self._jobs, self._first = (step, steps), 0
            self._show(stage, step, steps, News(event["name"]), now=True)

    def _show(self, stage: str, done: int, total: int, news: News, now: bool = False) -> None:
        left = self._seconds_left(done, total)
        time_left = f", about {duration(left)} left" if left and done < total else ""
        self._display.show(stage, done, total, news._replace(after=news.after + time_left), now=now)

    def _seconds_left(self, done: int, total: int) -> float | None:
        elapsed = time.monotonic() - self._began
        # The finished jobs tell more than a speed that was measured before them, once they are many.
        if self._expected and self._expected.seconds * self._slower > elapsed and 2 * done <= total:
            return self._expected.seconds * self._slower - elapsed
        return elapsed * (total - done) / (done - self._first) if done > self._first else None

    def _follow(self) -> None:
        """Show how the source stages go that other processes train, or that time passes, until the run ends."""
        assert self._folder is not None
        first: dict[Path, tuple[int, float]] = {}
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            if not self._jobs:
                continue
            logs = {log: log.stat().st_mtime for log in self._folder.glob("sources/**/events.jsonl")}
            newest = max(logs, key=lambda log: logs[log], default=None)
            event = last_step(newest) if newest and time.time() - logs[newest] < RECENT_SECONDS else None
            news = News("training")
            if newest and event:
                where = f"source stage {newest.parent.name}: step {event['step'] + 1}"
                news = News(where, "", means(event["loss"]), str(newest), event["step"])
                self._compare_pace(
                    event["step"], logs[newest], *first.setdefault(newest, (event["step"], logs[newest]))
                )
            self._show(JOBS, *self._jobs, news)

    def _compare_pace(self, step: int, now: float, first: int, then: float) -> None:
        if self._expected and step > first:
            self._slower = max(1.0, (now - then) / (step - first) / self._expected.per_step)


class _Display(Protocol):
    def show(self, stage: str, done: int, total: int, news: News, *, now: bool = False) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Plain lines: the first news of a stage, then one about every ten seconds, and whatever must be said now."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ("", float("-inf"))

    def show(self, stage: str, done: int, total: int, news: News, *, now: bool = False) -> None:
        shown, when = self._last
        if now or stage != shown or time.monotonic() - when >= SECONDS_BETWEEN_LINES:
            self._last = stage, time.monotonic()
            told = ", ".join(filter(None, (news.before, in_words(news.losses))))
            line = f"{stage}: {done} of {total}, {told}{news.after}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None: ...


class _FactsColumn(ProgressColumn):
    """Diagnostics and the time left; the only column that is shortened on a narrow terminal."""

    def render(self, task: Bar) -> Text:
        return Text(task.fields["facts"], style="dim", no_wrap=True, overflow="ellipsis")


class _WithCurves(Progress):
    """A bar, and under it the curve of each task."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.curves = Curves()
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield self.curves


class _Bars:
    """One live bar with its curves; a new stage gets a new one, and only the last one stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._progress = _WithCurves(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            _FactsColumn(),
            console=console,
        )
        self._bar: TaskID | None = None
        self._stage = ""

    def show(self, stage: str, done: int, total: int, news: News, *, now: bool = False) -> None:
        self._progress.curves.follow(news.of, news.step, news.losses)
        if self._bar is None:
            self._progress.start()
        elif stage != self._stage:
            self._progress.remove_task(self._bar)
        if self._bar is None or stage != self._stage:
            self._bar, self._stage = self._progress.add_task(stage, total=total, facts=""), stage
        facts = (news.before + news.after).removeprefix(", ")
        self._progress.update(self._bar, completed=done, total=total, facts=facts)

    def close(self) -> None:
        if self._bar is not None:
            self._progress.stop()


def means(by_task: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean loss of each task over its particles."""
    return {name: fmean(values) for name, values in by_task.items()}


def in_words(losses: Mapping[str, float]) -> str:
    """Return the loss of each task in one line, or "" without any; of many tasks only the first few."""
    shown = [f"{name} {loss:.2f}" for name, loss in losses.items()]
    more = f" +{len(shown) - TASKS_SHOWN}" if len(shown) > TASKS_SHOWN else ""
    return "loss " + " ".join(shown[:TASKS_SHOWN]) + more if shown else ""


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 2 min 5 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def last_step(log: Path) -> dict[str, Any] | None:
    """Return the last step that an event log tells of, or None if there is none yet."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        with suppress(ValueError):  # a line that is being written
            event = line_values(line)
            if event.get("event") == "step":
                return event
    return None


def _diagnostics(facts: dict[str, Any]) -> str:
    ratio = facts["repulsion_to_drive"]
    return f", spread {facts['spread']:.2g}" + ("" if ratio is None else f", repulsion/drive {ratio:.1e}")
