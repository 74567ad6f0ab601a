"""The one guard of output folders: which folder a run or an artifact may be written into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from bmtpt.errors import ArtifactError

CARD = "card.json"
CHECKPOINT = "checkpoint.safetensors"

Kind = Literal["posterior", "prompt", "mixture", "weights"]
"""What an artifact is. Its numbers are in `KIND.safetensors`."""


def require_free(folder: str | Path | None, kind: Kind, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a folder that holds another kind of artifact, or a run that is neither resumed nor overwritten.

    Args:
        folder: Where a run or an artifact will be written; None (nothing is written) is always free.
        kind: What will be saved there.

    Raises:
        ArtifactError: As said. Nothing is changed.
    """
    if folder is None:
        return
    for other in get_args(Kind):
        if other != kind and os.path.exists(Path(folder) / f"{other}.safetensors"):  # unlike Path.exists, never raises
            held = "tuned weights" if other == "weights" else f"a {other}"
            raise ArtifactError(f"{folder} holds {held} and not a {kind}; choose another folder")
    taken = [name for name in (CARD, CHECKPOINT) if os.path.exists(Path(folder) / name)]
    if taken and not resume and not overwrite:
        raise ArtifactError(
            f"{folder} holds a run already ({taken[0]}); resume or overwrite it, or choose another folder"
        )


@contextmanager
def output_folder(
    folder: str | Path | None, kind: Kind, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Path | None]:
    """Make an output folder and hold it for this process while the work runs, before anything expensive is loaded.

    A folder that this call has made is removed if the work fails before writing to it. Nested calls are allowed.

    Args:
        folder, kind: As for `require_free`; None yields None.

    Raises:
        ArtifactError: As `require_free`; another process is working in the folder; or it cannot be made.
    """
    if folder is None:
        yield None
        return
    folder = Path(folder)
    require_free(folder, kind, resume=resume, overwrite=overwrite)
    with made(folder), held(folder):
        yield folder


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing; if the work then fails and the folder is still empty, remove it.

    Raises:
        ArtifactError: It cannot be made.
    """
    new = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot use {folder}: {error.strerror}; choose another folder") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()  # refuses, as it should, when the folder holds anything
        raise


_HELD: dict[str, int] = {}
"""Folders that this process holds, and how many nested calls hold each."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The lock is on the folder itself, so it leaves no file and ends with the process.

    Raises:
        ArtifactError: Another process holds it.
    """
    place = os.path.realpath(folder)
    handle = None if place in _HELD else _locked(place)
    _HELD[place] = _HELD.get(place, 0) + 1
    try:
        yield
    finally:
        _HELD[place] -= 1
        if not _HELD[place]:
            del _HELD[place]
        if handle is not None:
            os.close(handle)


def _locked(place: str) -> int | None:
    """Return an open handle whose closing frees the folder; None on systems that lock no folders (Windows)."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ArtifactError(
            f"another process is working in {place}; wait until it has finished, or choose another folder"
        ) from error
    except OSError:  # a network file system without locks
        os.close(handle)
        return None
    return handle
