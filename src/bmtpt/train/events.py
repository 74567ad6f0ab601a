"""Events of a run: JSON lines in its folder, and calls of a listener such as a progress bar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import ArtifactError, cannot_write
from bmtpt.sealed import line_values, sealed_line


class Listener(Protocol):
    """Receives every event as a JSON-able dictionary with at least ``event`` and ``step``.

    No log keeps the event ``validating``, which comes before a validation: that may take as long as many steps.
    """

    def __call__(self, event: dict[str, Any]) -> None: ...


class EventLog:
    """Appends events to `events.jsonl`, each sealed, so that a line that was changed is not read as an event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the events of steps from ``step`` on: a resumed run logs them again."""
        kept = []
        for line in _lines(self.path):
            at = _event(line).get("step")
            if isinstance(at, (int, float)) and at < step:  # an event without a step counts as not written
                kept.append(line)
        write_text_atomically(self.path, "".join(line + "\n" for line in kept))

    def __call__(self, event: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8", opener=_not_anew) as file:
                file.write(sealed_line(event))
        except OSError as error:
            raise ArtifactError(cannot_write(self.path, error)) from error


def _not_anew(path: str, flags: int) -> int:
    """Open a log that `EventLog.rewind` has made: if it has vanished, a new one would lack its beginning."""
    return os.open(path, flags & ~os.O_CREAT)


def end_of(path: Path) -> dict[str, Any] | None:
    """Return the last event "end" of a log, with its `step` and `seconds`, or None if there is none."""
    for line in reversed(_lines(path)):
        event = _event(line)
        if event.get("event") == "end":
            return event
    return None


def _lines(path: Path) -> list[str]:
    """Return the log's lines; bytes that are not UTF-8 (a damaged disk) do not stop a run whose checkpoint is whole."""
    return path.read_bytes().decode("utf-8", errors="replace").split("\n") if path.is_file() else []


def _event(line: str) -> dict[str, Any]:
    """Return a line's event; {} for a line that a kill cut short or that was damaged."""
    try:
        return line_values(line)
    except ValueError:
        return {}
