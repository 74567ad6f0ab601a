"""What an artifact notes about itself: `card.json`.

The card is JSON, so reading it runs no code. It holds the SHA-256 of the weights: an edited, truncated or half-replaced
pair is noticed before it predicts anything.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bmtpt.artifacts.folder import A_KIND, CARD, Kind, read_raw_card
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, BackboneError

FORMAT_VERSION: Final = 1


class BackboneCard(BaseModel):
    """Which frozen language model an artifact belongs to.

    Attributes:
        name: Hub id, folder, or "offline".
        fingerprint: `Backbone.fingerprint`.
        parameters: Distinct parameters (tied weights count once).
        decoder_only: Whether prompt, text and answer are one sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    parameters: int
    d_model: int
    vocab_size: int
    decoder_only: bool = False


class Card(BaseModel):
    """What every kind of artifact notes.

    Attributes:
        settings: The resolved settings of the run.
        steps: Optimiser steps.
        seconds: Wall time.
        created: ISO 8601 time.
        weights_sha256: SHA-256 of the safetensors file; saving fills it in.
    """

    # ser_json_inf_nan is pydantic's default, stated: a diagnostic that is NaN becomes null, not broken JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    format_version: Literal[1] = FORMAT_VERSION
    kind: Kind
    backbone: BackboneCard
    sources: tuple[str, ...]
    settings: dict[str, Any]
    steps: int
    seconds: float
    versions: dict[str, str]
    created: str
    weights_sha256: str = ""


class PosteriorCard(Card):
    """Where a posterior comes from.

    Attributes:
        diagnostics: Held-back losses of θ̄ and of the particles, how many texts were cut, and under `svgd` where the
            particles ended (`posterior.diagnostics.Diagnostics`).
    """

    kind: Literal["posterior"] = "posterior"
    diagnostics: dict[str, Any]


class TargetCard(Card):
    """What the artifacts of a target note: enough about its task to predict from the folder alone.

    Attributes:
        task_definition: Dump of the resolved task.
        posterior: ``weights_sha256`` of the posterior that was its prior, or None.
        selection: How the model was chosen (validation curve, prior_std curve, ...).
        trained_parameters: Numbers trained for this task.
    """

    task: str
    task_definition: dict[str, Any]
    method: str
    posterior: str | None
    selection: dict[str, Any]
    trained_parameters: int


class PromptCard(TargetCard):
    """Where a prompt comes from."""

    kind: Literal["prompt"] = "prompt"


class MixtureCard(TargetCard):
    """Where a mixture of prompts comes from."""

    kind: Literal["mixture"] = "mixture"


class WeightsCard(TargetCard):
    """Where tuned weights come from (`methods/weights.py`)."""

    kind: Literal["weights"] = "weights"


AnyCard = TypeVar("AnyCard", bound=Card)


def require_backbone(card: BackboneCard, backbone: Backbone | BackboneCard) -> None:
    """Raise a BackboneError if an artifact was trained on another backbone than the one that is loaded (or noted)."""
    same = card.fingerprint == backbone.fingerprint
    if not same and (isinstance(backbone, BackboneCard) or not backbone.matches(card.fingerprint)):
        raise BackboneError(
            f"this artifact was trained with backbone '{card.name}' (fingerprint {card.fingerprint[:12]}) and cannot "
            f"be used with '{backbone.name}' (fingerprint {backbone.fingerprint[:12]}): load the backbone it was "
            "trained with"
        )


def backbone_card(backbone: Backbone) -> BackboneCard:
    """Return what an artifact notes about the model it belongs to."""
    return BackboneCard.model_validate(backbone, from_attributes=True)


def now() -> str:
    """Return the time for a card, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions that decide a run's numbers: bmtpt, python, torch, transformers."""
    found = {"python": platform.python_version()}
    for package in ("bmtpt", "torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
            found[package] = "not installed"
    return found


def read_card(folder: Path, *models: type[AnyCard]) -> AnyCard:
    """Return the card of an artifact of one of some kinds.

    Raises:
        ArtifactError: The folder has no card, or one that is damaged or of another kind or format version.
    """
    path, raw = folder / CARD, read_raw_card(folder)
    if raw is None:
        raise ArtifactError(f"{folder} holds no posterior or prompt: there is no {CARD}")
    if not isinstance(raw, dict) or raw.get("kind") not in list(A_KIND):
        raise ArtifactError(f"{path} is not the card of a posterior or a prompt")
    if raw.get("format_version") != FORMAT_VERSION:
        noted = raw.get("versions")
        writer = noted.get("bmtpt", "unknown version") if isinstance(noted, dict) else "unknown version"
        raise ArtifactError(
            f"{path} has format version {raw.get('format_version')!r} and this bmtpt reads {FORMAT_VERSION}; use the "
            f"bmtpt that wrote it ({writer}) or train again"
        )
    by_kind = {model.model_fields["kind"].default: model for model in models}
    if raw["kind"] not in by_kind:
        wanted = " or ".join(A_KIND[kind] for kind in by_kind)
        raise ArtifactError(f"{folder} holds {A_KIND[raw['kind']]} where {wanted} is needed")
    try:
        return by_kind[raw["kind"]].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path} is not a valid card: {field}: {first['msg'].lower()}") from error
