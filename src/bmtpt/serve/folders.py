"""Folders whose prompts are served: found at the start, and followed while the server runs.

A prompt is called like its folder. A folder is read when its files have not changed between two looks, so that no copy
is read halfway; what cannot be read leaves the prompt of before in place. Two looks at two files cost some 10 µs, need
no help of the file system, and see what another machine writes, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bmtpt.artifacts.folder import CARD
from bmtpt.artifacts.hub import local, on_hub
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import ArtifactError, BmtptError, SettingsError, cannot_read
from bmtpt.serve.errors import UnknownPrompt
from bmtpt.serve.log import event, log
from bmtpt.serve.service import Service
from bmtpt.serve.shelf import require_name

EVERY = 1.0
"""Seconds between two looks."""

WEIGHTS = "prompt.safetensors"
Signature = tuple[tuple[int, int, int], ...]


def prompt_folders(given: Sequence[Path]) -> dict[str, Path]:
    """Return the folders of prompts by name: each one given, or those inside it; of `hub:user/name` the name.

    Raises:
        ArtifactError: There is no prompt in one of them, or on the hub.
        BadPrompt: A folder's name cannot be a prompt's.
        SettingsError: Two of them have the same name.
    """
    found: dict[str, Path] = {}
    for place in given:
        if on_hub(place):
            inside = {place.name.partition("@")[0]: local(place)}
        else:
            folders = [place] if (place / CARD).is_file() else list(folders_in(place))
            inside = {folder.resolve().name: folder for folder in folders}
        if not inside:
            raise ArtifactError(f"{place} holds no prompt and no folders of prompts (no {CARD}); check its path")
        for name, folder in inside.items():
            require_name(name)
            if name in found:
                raise SettingsError(f"{found[name]} and {folder} would both be called '{name}'; rename one of them")
            found[name] = folder
    return found


def folders_in(place: Path) -> Iterator[Path]:
    """Yield the folders with a card in a folder, in order; hidden ones are left out."""
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise ArtifactError(cannot_read(place, error)) from error
    for name in names:
        if not name.startswith(".") and os.path.isfile(place / name / CARD):
            yield place / name


class Watch:
    """Keeps a service's prompts as those in a folder.

    Args:
        taken: Names of prompts from other folders, which one in here cannot replace.
    """

    def __init__(self, service: Service, folder: Path, taken: Sequence[str] = ()) -> None:
        self.service, self.folder, self.taken = service, folder, frozenset(taken)
        self._seen: dict[str, Signature] = {}
        self._settled: dict[str, Signature] = {}

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await asyncio.to_thread(self.look)
            except Exception:  # a fault of ours must not end the watch
                log.exception("a look at the watched folder failed")

    def look(self) -> None:
        """Load what is new and has settled since the last look, and remove what has gone."""
        try:
            folders = {path.name: path for path in folders_in(self.folder)}
        except ArtifactError as error:  # such as a network that is away: the prompts stay
            event("watched folder cannot be read", logging.WARNING, reason=str(error))
            return
        seen = {name: _signature(path) for name, path in folders.items()}
        for name, signature in seen.items():
            if signature == self._seen.get(name) != self._settled.get(name):
                self._settled[name] = signature
                self._load(name, folders[name])
        for name in [name for name in self._settled if name not in seen and name not in self._seen]:
            del self._settled[name]
            self._remove(name)
        self._seen = seen

    def look_at_start(self) -> None:
        """Load what is there without waiting for it to settle."""
        self.look()
        self.look()

    def _load(self, name: str, path: Path) -> None:
        try:
            if name in self.taken:
                raise SettingsError(f"a prompt called '{name}' was given with --prompts; rename the folder")
            old = self.service.load(name, Prompt.load(path), "watch")
            event("prompt replaced" if old else "prompt loaded", prompt=name)
        except BmtptError as error:
            event("prompt refused", logging.WARNING, prompt=name, reason=str(error))

    def _remove(self, name: str) -> None:
        served = self.service.shelf.snapshot().get(name)
        if served is None or served.origin != "watch":
            return
        try:
            self.service.shelf.remove(name)
            event("prompt removed", prompt=name)
        except UnknownPrompt:  # by an administrator, just now
            pass


def _signature(folder: Path) -> Signature:
    """Return what changes when a prompt's files do."""
    found = []
    for name in (CARD, WEIGHTS):
        try:
            state = os.stat(folder / name)
        except OSError:  # a card without weights is told when it is read
            found.append((0, 0, 0))
        else:
            found.append((state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)
