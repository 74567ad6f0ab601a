"""What an artifact notes about itself: `card.json`.

The card is JSON, so reading it runs no code. It holds the SHA-256 of the weights and of itself (`bmtpt.sealed`), so an
edited, truncated or half-replaced pair is noticed before it predicts anything. Cards of format 1 hold no hash of
themselves: of them only the weights and the types of the fields are checked.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from bmtpt.artifacts.folder import A_KIND, CARD, FORMAT_VERSION, Kind, read_raw_card
from bmtpt.artifacts.readout_prior import WidthCurve
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, BackboneError
from bmtpt.sealed import field_problem, parse_json, sealed
from bmtpt.types import Normalise


class _Read(BaseModel):
    """What later stages read of one of a card's free mappings. A number that was not finite is null."""

    model_config = ConfigDict(extra="ignore")


class _Settings(_Read):
    max_length: PositiveInt | None = None
    shots: NonNegativeInt | None = None
    seed: int = 0
    learning_rate: float | None = None
    normalise: Normalise = "none"


class _Svgd(_Read):
    bandwidth: float | None = None
    kernel: list[list[float | None]] = []
    kernel_rank: float | None = None
    repulsion_to_drive: float | None = None
    stein_discrepancy: float | None = None


class _Diagnostics(_Read):
    mean_nll: dict[str, float | None] = {}
    particle_nll: dict[str, list[float | None]] = {}
    mean_gap: float | None = None
    svgd: _Svgd = _Svgd()
    texts_cut: dict[str, NonNegativeInt] = {}


class _Candidate(_Read):
    start: str
    prior: str
    prior_std: float | None
    best: list[float | None]
    step: NonNegativeInt


class _Selection(_Read):
    winners: list[_Candidate] = []
    candidates: list[_Candidate] = []
    train_rows: NonNegativeInt | None = None
    validation_rows: NonNegativeInt | None = None
    texts_cut: NonNegativeInt = 0


def _reads(model: type[_Read]) -> AfterValidator:
    """Check what is read of a free mapping; all of it is kept as it is."""

    def checked(values: dict[str, Any]) -> dict[str, Any]:
        try:
            model.model_validate(values)
        except ValidationError as error:
            raise ValueError(field_problem(error)) from error
        return values

    return AfterValidator(checked)


class BackboneCard(BaseModel):
    """Which frozen language model an artifact belongs to.

    Attributes:
        name: Hub id, folder, or "offline".
        fingerprint: `Backbone.fingerprint`.
        parameters: Distinct parameters (tied weights count once).
        decoder_only: Whether prompt, text and answer are one sequence.
        tokenizer_hash: `Backbone.tokenizer_hash`; empty in older cards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    parameters: PositiveInt
    d_model: PositiveInt
    vocab_size: PositiveInt
    decoder_only: bool = False
    tokenizer_hash: str = ""


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

    format_version: Literal[1, 2] = FORMAT_VERSION
    kind: Kind
    backbone: BackboneCard
    sources: tuple[str, ...]
    settings: Annotated[dict[str, Any], _reads(_Settings)]
    steps: NonNegativeInt
    seconds: float
    versions: dict[str, str]
    created: str
    weights_sha256: str = ""


class PosteriorCard(Card):
    """Where a posterior comes from.

    Attributes:
        diagnostics: Held-back losses, where the particles ended, and how many texts were cut.
        readout_prior: How wide the sources want the prior of a readout, by number of labels; empty if it was not asked.
    """

    kind: Literal["posterior"] = "posterior"
    diagnostics: Annotated[dict[str, Any], _reads(_Diagnostics)]
    readout_prior: tuple[WidthCurve, ...] = ()


class Calibration(BaseModel):
    """A temperature, and what it does to rows whose own labels neither it nor the readout was fitted to.

    Attributes:
        temperature: T; the artifact's readouts hold it already.
        rows: Labelled rows that it was fitted to.
        nll_before, nll_after: Nats.
        ece_before, ece_after: 0 to 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: PositiveFloat
    rows: PositiveInt
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    def __str__(self) -> str:
        figures = f"NLL {self.nll_before:.3f} → {self.nll_after:.3f}, ECE {self.ece_before:.1f} → {self.ece_after:.1f}"
        return f"temperature {self.temperature:.2f}, fitted on {self.rows:,} rows (cross-fitted: {figures})"


class TargetCard(Card):
    """What the artifacts of a target note: enough about its task to predict from the folder alone.

    Attributes:
        task_definition: Dump of the resolved task.
        posterior: ``weights_sha256`` of the posterior that was its prior, or None.
        selection: How the model was chosen (validation curve, prior_std curve, ...).
        trained_parameters: Numbers trained for this task.
        answer_tokens: Most tokens of a generated answer; None in cards from before it was noted.
        calibration: Of its probabilities; None if no temperature was fitted.
    """

    task: str
    task_definition: dict[str, Any]
    method: str
    posterior: str | None
    selection: Annotated[dict[str, Any], _reads(_Selection)]
    trained_parameters: NonNegativeInt
    answer_tokens: PositiveInt | None = None
    calibration: Calibration | None = None


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
    if len({card.tokenizer_hash, backbone.tokenizer_hash} - {""}) > 1:
        raise BackboneError(
            f"this artifact was trained with another tokenizer than that of '{backbone.name}', which writes texts as "
            "other tokens: load the backbone with the tokenizer that it was trained with"
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


def stamped(card: AnyCard, weights: bytes) -> tuple[AnyCard, bytes]:
    """Return a card with the SHA-256 of an artifact's weights, and the content of its file, sealed."""
    noted = {"format_version": FORMAT_VERSION, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    card = card.model_copy(update=noted)
    content = json.dumps(sealed(parse_json(card.model_dump_json())), indent=2, ensure_ascii=False)
    return card, (content + "\n").encode()


def read_card(folder: Path, *models: type[AnyCard]) -> AnyCard:
    """Return the card of an artifact of one of some kinds.

    Raises:
        ArtifactError: The folder has no card, or one that is damaged or of another kind or format version.
    """
    raw = read_raw_card(folder)
    if raw is None:
        raise ArtifactError(f"{folder} holds no posterior or prompt: there is no {CARD}")
    return as_card(raw, str(folder), *models)


def as_card(raw: dict[str, Any], folder: str, *models: type[AnyCard]) -> AnyCard:
    """Return the card that holds some fields. Raises as `read_card`."""
    by_kind = {model.model_fields["kind"].default: model for model in models}
    if raw["kind"] not in by_kind:
        wanted = " or ".join(A_KIND[kind] for kind in by_kind)
        raise ArtifactError(f"{folder} holds {A_KIND[raw['kind']]} where {wanted} is needed")
    try:
        return by_kind[raw["kind"]].model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{folder}/{CARD} is not a valid card: {field_problem(error)}") from error
