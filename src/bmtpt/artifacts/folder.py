"""What the folder of a run or an artifact holds, and the one guard of what may be written into it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from bmtpt.errors import ArtifactError, cannot_read, cannot_write
from bmtpt.sealed import SEAL, read_json, unsealed

CARD = "card.json"
CHECKPOINT = "checkpoint.safetensors"
FORMAT_VERSION: Final = 2
UNSEALED_VERSION: Final = 1
"""Format of cards that hold no SHA-256 of themselves."""

Kind = Literal["posterior", "prompt", "mixture", "weights"]
"""What an artifact is. Its numbers are in `KIND.safetensors`."""

A_KIND = {kind: "tuned weights" if kind == "weights" else f"a {kind}" for kind in get_args(Kind)}


def require_free(folder: str | Path | None, kind: Kind, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise an ArtifactError if a folder holds another kind of artifact, or a run neither resumed nor overwritten."""
    if folder is None:
        return
    for other, held in A_KIND.items():
        if other != kind and os.path.exists(Path(folder) / f"{other}.safetensors"):  # unlike Path.exists, never raises
            raise ArtifactError(f"{folder} holds {held} and not {A_KIND[kind]}; choose another folder")
    taken = [name for name in (CARD, CHECKPOINT) if os.path.exists(Path(folder) / name)]
    if taken and not resume and not overwrite:
        raise ArtifactError(
            f"{folder} holds a run already ({taken[0]}); resume or overwrite it, or choose another folder"
        )


def read_raw_card(folder: Path) -> dict[str, Any] | None:
    """Return the fields of a folder's card as they were written, or None without one.

    Raises:
        ArtifactError: It cannot be read, is not the card of this or an earlier format, or not as it was written.
    """
    path = folder / CARD
    return raw_card(read_json(path), str(path)) if path.is_file() else None


def raw_card(found: Any, path: str) -> dict[str, Any]:
    """Return the fields of a card without its seal. Raises as `read_raw_card`; the sentence begins with ``path``."""
    if not isinstance(found, dict) or found.get("kind") not in list(A_KIND):
        raise ArtifactError(f"{path} is not the card of a posterior or a prompt")
    version = found.get("format_version")
    if version not in (UNSEALED_VERSION, FORMAT_VERSION):
        noted = found.get("versions")
        writer = noted.get("bmtpt", "unknown version") if isinstance(noted, dict) else "unknown version"
        raise ArtifactError(
            f"{path} has format version {version!r} and this bmtpt reads {UNSEALED_VERSION} and {FORMAT_VERSION}; use "
            f"the bmtpt that wrote it ({writer}) or train again"
        )
    if (version == UNSEALED_VERSION) == (SEAL in found):
        raise ArtifactError(f"{path} was edited: its {SEAL} does not go with format {version}; copy the folder again")
    try:
        return unsealed(found)
    except ValueError as error:
        raise ArtifactError(f"{path} is {error}; copy the folder again or train again") from error


def read_weights(folder: Path, kind: Kind, sha256: str) -> bytes:
    """Return the safetensors file of an artifact whose card notes a SHA-256. Links are followed: the hash decides.

    Raises:
        ArtifactError: It cannot be read, or is not the file that the card describes.
    """
    path = folder / f"{kind}.safetensors"
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ArtifactError(f"{path} is not a file; copy the folder again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(cannot_read(path, error)) from error
    require_hash(content, sha256, str(path))
    return content


def require_hash(content: bytes, sha256: str, path: str) -> None:
    """Raise an ArtifactError if a safetensors file is not the one whose SHA-256 a card notes."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(
            f"{path} is not the file that {CARD} describes (its SHA-256 differs): it was cut off, edited or replaced; "
            "copy the folder again or train again"
        )


@contextmanager
def output_folder(
    folder: str | Path | None, kind: Kind, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Path | None]:
    """Make an output folder and hold it for this process while the work runs, before anything expensive is loaded.

    A folder that this call has made is removed if the work fails before writing to it. Nested calls are allowed, and
    None yields None. Raises as `require_free`, `made` and `held`.
    """
    if folder is None:
        yield None
        return
    folder = Path(folder)
    with made(folder), held(folder):
        require_free(folder, kind, resume=resume, overwrite=overwrite)
        yield folder


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, where missing; if the work then fails, remove them if they are still empty."""
    new = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(cannot_write(folder, error)) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in new:
                place.rmdir()  # refuses, as it should, when the folder holds anything
        raise


@dataclass
class _Hold:
    handle: int | None
    calls: int = 0


PATIENCE = 1.0
"""Seconds to wait for a lock: the processes of a study that was killed end a moment after it (`studies.run`)."""

_HELD: dict[str, _Hold] = {}
"""Folders that this process holds, each with its lock and the number of nested calls."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    The lock is on the folder itself, so it leaves no file and ends with the process.

    Raises:
        ArtifactError: Another process holds it, or it has vanished while it was held.
    """
    place = os.path.realpath(folder)
    hold = _HELD.get(place) or _Hold(_locked(place))
    _HELD[place] = hold
    hold.calls += 1
    try:
        yield
        require_there(folder)
    finally:
        hold.calls -= 1
        if not hold.calls:
            del _HELD[place]
            if hold.handle is not None:
                os.close(hold.handle)


def require_there(folder: Path) -> None:
    """Raise an ArtifactError if a folder that this process holds was removed, or replaced by another one."""
    hold = _HELD[os.path.realpath(folder)]
    if hold.handle is None:
        return
    try:
        there = os.path.samestat(os.stat(folder), os.fstat(hold.handle))
    except OSError:
        there = False
    if not there:
        raise ArtifactError(f"{folder} has vanished while it was written to: it was removed or replaced; start again")


def _locked(place: str) -> int | None:
    """Return an open handle whose closing frees the folder; None on systems that lock no folders (Windows)."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(place, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(cannot_write(place, error)) from error
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError as error:
            if time.monotonic() > end:
                os.close(handle)
                raise ArtifactError(
                    f"another process is working in {place}; wait until it has finished, or choose another folder"
                ) from error
            time.sleep(0.05)
        except OSError:  # a network file system without locks
            os.close(handle)
            return None
