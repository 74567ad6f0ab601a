"""Losses as they go: for each task a line of blocks and the last value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
"""From the lowest value of a curve to the highest; the second where the output is no Unicode."""

LONGEST = 60
"""Most blocks of a line."""

BEYOND_BLOCKS = 13
"""Columns that are no block and no name: gaps, and a value such as 1234.56."""


class Curve:
    """A loss from its first step on, in means over equally many steps, so that a long run takes no more memory."""

    def __init__(self) -> None:
        self.last = math.nan
        self._means: list[float] = []
        self._since: list[float] = []
        self._each = 1

    def add(self, value: float) -> None:
        """Take the next step's loss."""
        self.last = value
        self._since.append(value)
        if len(self._since) == self._each:
            self._means.append(fmean(self._since))
            self._since = []
        if len(self._means) == 2 * LONGEST:
            self._means = _means_of(self._means, LONGEST)
            self._each *= 2

    def blocks(self, width: int, levels: str = BLOCKS) -> str:
        """Return the curve in at most so many blocks; a space is a loss that is not finite."""
        since = [*self._since]  # the display has a thread of its own
        points = [*self._means, *([fmean(since)] if since else [])]
        points = _means_of(points, min(width, len(points)))
        finite = [point for point in points if math.isfinite(point)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        step = (high - low) / (len(levels) - 1) or 1.0
        return "".join(levels[round((point - low) / step)] if math.isfinite(point) else " " for point in points)


def _means_of(values: Sequence[float], count: int) -> list[float]:
    """Divide values into so many groups of about the same size; return the mean of each."""
    n = len(values)
    return [fmean(values[i * n // count : (i + 1) * n // count]) for i in range(count)]


class Curves:
    """The curves of one run's tasks."""

    def __init__(self) -> None:
        self._of = ""
        self._step = -1
        self._by_task: dict[str, Curve] = {}

    def follow(self, of: str, step: int, losses: Mapping[str, float]) -> None:
        """Take the losses of a step of a run, unless they are known; another run begins new curves."""
        if of != self._of:
            self._of, self._step, self._by_task = of, -1, {}
        if losses and step != self._step:
            self._step = step
            self._by_task = {task: self._by_task.get(task, Curve()) for task in losses}
            for task, loss in losses.items():
                self._by_task[task].add(loss)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a line for each task, as far as the terminal is high enough, no wider than it is."""
        room, curves = options.max_width - BEYOND_BLOCKS, list(self._by_task.items())
        names = min(max((cell_len(task) for task, _ in curves), default=0), max(1, room // 2))
        shown = curves[: max(1, console.height - 4)]
        for task, curve in shown:
            name = Text(f"  {task}")
            name.truncate(names + 2, overflow="ellipsis", pad=True)
            blocks = curve.blocks(max(1, min(room - names, LONGEST)), PLAIN_BLOCKS if options.ascii_only else BLOCKS)
            yield Text.assemble(name, "  ", (blocks, "cyan"), f"  {curve.last:.2f}", no_wrap=True, overflow="crop")
        if len(shown) < len(curves):
            yield Text(f"  and {len(curves) - len(shown)} more tasks", no_wrap=True, overflow="crop")
