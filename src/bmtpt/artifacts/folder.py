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
def output_folder(folder: str | Path, kind: Kind, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Make an output folder before anything expensive is loaded; remove it if the work fails before writing to it.

    Raises:
        ArtifactError: As `require_free`; or the folder cannot be made.
    """
    require_free(folder, kind, resume=resume, overwrite=overwrite)
    folder = Path(folder)
    new = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot use {folder}: {error.strerror}; choose another folder") from error
    try:
        yield folder
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()  # refuses, as it should, when the folder holds anything
        raise
