"""What the library's calls share: arguments of the right kind (else a sentence that says what is wanted), artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.hub import pulled, pushed
from bmtpt.artifacts.inspect import describe_artifact
from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, BackboneError, SettingsError, described
from bmtpt.inference.evaluation import Evaluation
from bmtpt.settings import validated

Settings = TypeVar("Settings", bound=BaseModel)
Saved = TypeVar("Saved", Posterior, Prompt)


def require(value: Any, kind: Any, wanted: str) -> Any:
    """Return a value that is of a kind; raise a TypeError that says what is wanted if it is not."""
    if not isinstance(value, kind):
        raise TypeError(f"{wanted}, not {described(value)}")
    return value


def as_backbone(value: Any) -> Backbone:
    """Return a backbone, or load the one of a name (each name once per process)."""
    if isinstance(value, (str, Path)):
        return _loaded(str(value))
    found: Backbone = require(value, Backbone, "backbone must be a bmtpt.Backbone, or its name or folder")
    return found


_loaded = lru_cache(maxsize=4)(Backbone.from_pretrained)


class Artifact(Generic[Saved]):
    """What was trained, and its backbone, which is loaded when it is first needed."""

    _kind: type[Saved]
    _wanted: str

    def __init__(self, saved: Saved, backbone: Backbone | str | Path | None = None) -> None:
        self._saved: Saved = require(saved, self._kind, self._wanted)
        self._backbone = None if backbone is None else self._fitting(backbone)

    @property
    def backbone(self) -> Backbone:
        """The backbone it was trained with."""
        if self._backbone is None:
            name = self._saved.card.backbone.name
            try:
                self._backbone = self._fitting(name)
            except BackboneError as error:
                raise BackboneError(
                    f"the backbone '{name}' that this {self._saved.card.kind} was trained with cannot be loaded by its "
                    f"name ({error}); give the loaded one: load(folder, backbone)"
                ) from error
        return self._backbone

    def _fitting(self, backbone: Any) -> Backbone:
        found = as_backbone(backbone)
        require_backbone(self._saved.card.backbone, found)
        return found

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the artifact into a folder; raise an ArtifactError if that holds a run or cannot be written."""
        require(overwrite, bool, "overwrite must be True or False")
        self._saved = self._saved.save(as_folder(folder), overwrite=overwrite)

    def push_to_hub(
        self,
        name: str,
        *,
        evaluation: Evaluation | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the artifact to the Hugging Face hub, with a README of its card, and return its address.

        Args:
            name: `user/name`; a repository that does not exist is made.
            evaluation: Of a prompt (`Prompt.evaluate`): its scores go into the README and its model index.
            private: Whether a new repository is private; None takes the account's setting.
            revision: An existing branch; None takes the default one.
            token: None takes the one that `hf auth login` or HF_TOKEN has left.

        Raises:
            ArtifactError: The hub refuses or does not answer.
        """
        scores = {} if evaluation is None else dict(evaluation.figures)
        with tempfile.TemporaryDirectory() as folder:
            self._saved.save(folder)
            facts = describe_artifact(self._saved)
            return pushed(folder, name, facts=facts, scores=scores, private=private, revision=revision, token=token)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        backbone: Backbone | str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Read the artifact from the Hugging Face hub, or from the hub's cache if the hub does not answer.

        Args:
            name: `user/name`.
            backbone: As for `load`.
            revision: Branch, tag or commit; None takes the default branch.
            token: As for `push_to_hub`.

        Raises:
            ArtifactError: There is no such repository or revision, or it holds no such artifact.
            BackboneError: It was trained with another backbone.
        """
        return cls(cls._kind.load(pulled(name, revision, token)), backbone)

    @classmethod
    def load(cls, folder: str | Path, backbone: Backbone | str | Path | None = None) -> Self:
        """Read the artifact from a folder.

        Args:
            folder: Or `hub:user/name`, with `@revision` if it is not to be the newest.
            backbone: The backbone it was trained with; None loads the one its card names when it is needed.

        Raises:
            ArtifactError: The folder holds no such artifact, or a damaged one.
            BackboneError: It was trained with another backbone.
        """
        return cls(cls._kind.load(as_folder(folder)), backbone)


def as_settings(kind: type[Settings], settings: Any, options: Mapping[str, Any]) -> Settings:
    """Return settings with some of them replaced by keywords; raise a SettingsError if a name or a value is wrong."""
    # Only what was set: a preset among the options then fills in the rest.
    values = settings.model_dump(exclude_unset=True) if isinstance(settings, kind) else settings or {}
    require(values, Mapping, f"settings must be bmtpt.{kind.__name__}, a dict or None")
    return validated(kind, {**values, **options})


def as_run_folder(folder: Any, resume: Any, overwrite: Any) -> Path | None:
    """Return a run's folder, or None in memory; raise a SettingsError if there is no run to resume or replace."""
    for name, value in {"resume": resume, "overwrite": overwrite}.items():
        require(value, bool, f"{name} must be True or False")
        if value and folder is None:
            raise SettingsError(f"{name} needs the folder of the run; give folder")
    if resume and overwrite:
        raise SettingsError("resume continues a run and overwrite replaces it; give one of them")
    return None if folder is None else as_folder(folder)


def as_folder(value: Any) -> Path:
    """Return a folder's path."""
    if str(require(value, (str, Path), "folder must be a path")) in ("", "."):
        raise ArtifactError("folder must name a folder of its own, not the current one; give a name such as 'tickets'")
    return Path(value)
