"""Events of a run: JSON lines in its folder, and calls of a listener such as a progress bar."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import ArtifactError


class Listener(Protocol):
    """Receives every event as a JSON-able dictionary with at least ``event`` and ``step``."""

    def __call__(self, event: dict[str, Any]) -> None: ...


class EventLog:
    """Appends events to `events.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the events of steps from ``step`` on: a resumed run logs them again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step_of(line) < step]
        write_text_atomically(self.path, "".join(line + "\n" for line in kept))

    def __call__(self, event: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise ArtifactError(f"cannot write {self.path}: {error.strerror}; free some space and resume") from error


def end_of(path: Path) -> dict[str, Any] | None:
    """Return the last event "end" of a log, with its `step` and `seconds`, or None if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    ends = (json.loads(line) for line in reversed(lines) if line.startswith('{"event": "end"') and line.endswith("}"))
    return next(ends, None)


def _step_of(line: str) -> float:
    """Return an event's step; a line cut short by a kill counts as not written."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(line)["step"])
    return float("inf")
