"""The prompts that are loaded, by name. Each change makes a new mapping, so whoever holds one never sees half of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bmtpt.artifacts.card import now
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import nearest, shortened
from bmtpt.inference.predict import Route
from bmtpt.serve.errors import BadPrompt, UnknownPrompt
from bmtpt.tasks import TaskSpec


@dataclass(frozen=True)
class Served:
    """A loaded prompt.

    Attributes:
        name: What requests call it.
        prompt: As it was saved, with its card.
        route: How its rows are asked and read.
        origin: Where it came from: the folder's name, or "upload".
        loaded: When, ISO 8601 in UTC.
    """

    name: str
    prompt: Prompt
    route: Route
    origin: str = "start"
    loaded: str = field(default_factory=now)

    @property
    def task(self) -> TaskSpec:
        """The task that the prompt answers."""
        return self.route.task


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a prompt may be called: it goes into addresses, metrics and log lines."""

Snapshot = Mapping[str, Served]


class Shelf:
    """The loaded prompts. Any thread may read or change them."""

    def __init__(self) -> None:
        self._served: Snapshot = MappingProxyType({})
        self._changing = threading.Lock()

    def snapshot(self) -> Snapshot:
        """Return the prompts of this moment, by name; later changes make another mapping."""
        return self._served

    def put(self, served: Served) -> Served | None:
        """Load a prompt, or replace the one of its name, which is returned."""
        with self._changing:
            old = self._served.get(served.name)
            self._served = MappingProxyType({**self._served, served.name: served})
        return old

    def remove(self, name: str) -> Served:
        """Take a prompt away and return it; requests that were accepted before are still answered with it.

        Raises:
            UnknownPrompt: It is not loaded.
        """
        with self._changing:
            kept = dict(self._served)
            if name not in kept:
                raise unknown(name, kept)
            removed = kept.pop(name)
            self._served = MappingProxyType(kept)
        return removed


def unknown(name: str, snapshot: Snapshot) -> UnknownPrompt:
    """Return the error for a name that no prompt has."""
    cure = nearest(name, snapshot) if snapshot else "no prompt is loaded"
    return UnknownPrompt(f"no prompt is called '{shortened(name)}'; {shortened(cure, 200)}")


def require_name(name: str) -> None:
    """Raise a `BadPrompt` if a prompt may not be called so."""
    if not NAME.fullmatch(name):
        raise BadPrompt(
            f"a prompt cannot be called '{shortened(name)}'; take 1 to 64 letters, digits "
            "and _ . -, the first a letter or digit"
        )
