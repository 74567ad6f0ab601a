"""Write files whole or not at all: next to their final place, forced to disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path

from bmtpt.errors import ArtifactError, cannot_write


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole, or raise an ArtifactError and leave the old file."""
    write_files_atomically(path.parent, {path.name: text.encode()})


def write_files_atomically(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder (made if missing); its other files are left alone.

    All of them are on disk under hidden names before the first is renamed, so a full disk changes nothing. The
    renames follow the mapping's order: put the file that vouches for the others last. What a killed process left of
    earlier tries to write the same files is removed.

    Raises:
        ArtifactError: The folder or a file cannot be written; no part of a file is left.
    """
    new = not os.path.exists(folder)  # unlike Path.exists, never raises
    scratch = {name: folder / f".{name}.{secrets.token_hex(4)}.tmp" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in (path for name in files for path in folder.glob(f".{escape(name)}.{'[0-9a-f]' * 8}.tmp")):
            leftover.unlink(missing_ok=True)
        for name, content in files.items():
            _write_to_disk(scratch[name], content)
        for name in files:
            scratch[name].replace(folder / name)
        _sync_folder(folder)
    except OSError as error:
        raise ArtifactError(cannot_write(folder / next(iter(files)) if len(files) == 1 else folder, error)) from error
    finally:  # after a success there is nothing to remove
        for path in scratch.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if new:
            with suppress(OSError):
                folder.rmdir()  # refuses, as it should, when the folder holds anything


def _write_to_disk(path: Path, content: bytes) -> None:
    # Not tempfile: its files are readable by their owner only, and that would survive the rename.
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves durable where the system allows it (Windows opens no folders)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
