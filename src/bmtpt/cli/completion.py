"""What a shell completes: values of options that have few. Other words are paths, which it completes by itself.

It must answer at once, so nothing here loads torch, NumPy or pandas, and names of files are read from their folders: to
import what owns them would take as long as the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bmtpt.report.names import MEASURES, display_names

Completion = Callable[[str], list[str]]

TASKS = Path(__file__).parents[1] / "tasks"
STUDIES = Path(__file__).parents[1] / "studies" / "library"


def among(values: Iterable[str]) -> Completion:
    """Return a completion to a few values.

    >>> among(("packed", "generic"))("ge")
    ['generic']
    """
    known = tuple(values)
    return lambda incomplete: [value for value in known if value.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Return the built-in tasks that a word begins."""
    return among(sorted(path.stem for path in TASKS.glob("*.yaml")))(incomplete)


def complete_study(incomplete: str) -> list[str]:
    """Return the studies of bmtpt that a word begins."""
    return among(sorted(path.stem for path in STUDIES.glob("[!_]*.yaml")))(incomplete)


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that a word begins."""
    return among(display_names())(incomplete)


def complete_metric(incomplete: str) -> list[str]:
    """Return the metrics, measures and costs that a word begins."""
    from bmtpt.tasks.spec import METRICS

    return among(sorted({*MEASURES, *(metric for of_kind in METRICS.values() for metric in of_kind)}))(incomplete)


complete_backbone = among(("offline", "offline-causal"))
complete_data = among(("hub", "offline"))
complete_device = among(("auto", "cpu", "cuda", "auto-map"))
complete_scale = among(("smoke", "small", "paper"))

BY_NAME: dict[str, Completion] = {
    "source": complete_task,
    "target": complete_task,
    "backbone": complete_backbone,
    "data": complete_data,
    "device": complete_device,
}
"""Completions of settings, by their names."""
